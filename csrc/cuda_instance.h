/* A model on a device, as its parts see it: cuda_instance.cpp makes it and keeps the memory of its calls, cuda_run.cpp runs it. */
#ifndef TILEWRIGHT_CUDA_INSTANCE_H
#define TILEWRIGHT_CUDA_INSTANCE_H
#include <pthread.h>

#include "cuda.h"
#include "cuda_device.h"
#ifdef __cplusplus
extern "C" {
#endif

enum { TW_CUDA_STREAMS = 8, TW_CUDA_GRAPHS = 16 };

/* A call as it was made before: sizes and addresses. Once seen again it is captured. */
typedef struct tw_cuda_call {
  uint64_t *key;              /* null: the place is free */
  uint64_t hash;
  tw_cu_graph_exec graph;     /* null: seen once */
  uint64_t used;              /* when, by the instance's clock */
} tw_cuda_call;

/* What the calls in one stream use, one after another. */
typedef struct tw_cuda_stream_state {
  tw_cu_stream stream;
  int32_t taken;
  int32_t pending;            /* calls may have failed since the last wait */
  void *workspace;
  int64_t workspace_bytes;
  tw_cuda_failure *failure;   /* in host memory that the device writes to; a bool that was read lies behind it */
  tw_device_pointer failure_on_device;
  tw_cuda_call calls[TW_CUDA_GRAPHS];
  uint64_t used;
} tw_cuda_stream_state;

struct tw_cuda_instance {
  const tw_cuda_program *program;
  tw_cuda_device *device;
  tw_cu_module module;
  tw_cu_function *functions;  /* one for each kernel of the model */
  void *constants;
  tw_cu_stream own;           /* of calls with host memory, and of captures */
  uint8_t *pinned;            /* through which host arrays are copied */
  int64_t pinned_bytes;
  void *staged;               /* inputs and outputs of calls with host memory */
  int64_t staged_bytes;
  int64_t shape_entries;
  int32_t graphs;             /* 0: this program is launched kernel after kernel */
  uint64_t clock;
  pthread_mutex_t lock;
  tw_cuda_stream_state streams[TW_CUDA_STREAMS];
};

/* Its name, for errors. */
static inline const char *tw_cuda_subject(const tw_cuda_instance *instance) { return instance->program->model->name; }

/* tw_cuda_fail for a call on its device. */
static inline int32_t tw_cuda_refused(tw_cuda_instance *instance, const tw_context *context, const char *what, int error) {
  return tw_cuda_fail(instance->device, context, tw_cuda_subject(instance), what, error);
}

/* The state of calls in the stream with so many bytes of workspace; the context is entered and the lock held. */
int32_t tw_cuda_state_of(tw_cuda_instance *instance, const tw_context *context, tw_cu_stream stream, int64_t workspace_bytes,
                         tw_cuda_stream_state **state);

/* The graphs of a state, which hold its addresses. */
void tw_cuda_forget_calls(tw_cuda_instance *instance, tw_cuda_stream_state *state);

#ifdef __cplusplus
}
#endif
#endif
