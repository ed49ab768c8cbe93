/* A compiled model on a CUDA device: loading, running, waiting; what generated code, the runtime and hosts agree on. C99.
 *
 * The object of a model for a GPU is that of one for a CPU (abi.h): a description, `plan`, and `thread`, which goes through the
 * program's steps. Its kernels are stubs that hand their arguments to `launch` of the team, and conditions in memory are read
 * by its `read`. What runs on the device are images (cubins, PTX) that lie in the object as constants.
 *
 * No CUDA is needed to build or to load this: the driver's library is opened by its name at the first use (cuda_driver.h).
 * Guarantees: every failure comes back as a negative status with a message in context->error; memory that a failed call took
 * is given back. Thread safety: calls on one instance take turns; instances are independent.
 * C library only (no libstdc++): this is part of ahead-of-time artifacts. */
#ifndef TILEWRIGHT_CUDA_H
#define TILEWRIGHT_CUDA_H
#include "abi.h"
#ifdef __cplusplus
extern "C" {
#endif

#define TW_CUDA_VERSION 1

/* Beside tw_status of abi.h. */
enum tw_cuda_status {
  TW_ERROR_DRIVER = -20,      /* no driver, one that is too old, or no such device */
  TW_ERROR_DEVICE = -21,      /* the driver refused a call */
  TW_ERROR_DEVICE_LOST = -22  /* a kernel failed: no memory of this process on the device can be used any more */
};

enum tw_cuda_flags { TW_CUDA_READS_CONDITIONS = 1 }; /* its control flow depends on memory: no graph holds the whole of it */

/* The source compiled: "sm_90a" with a cubin, "compute_80" with PTX (null-terminated), "emulated" with a host library. */
typedef struct tw_cuda_image {
  const char *architecture;
  const uint8_t *data;
  int64_t bytes;
} tw_cuda_image;

/* A kernel's function. Its parameters: pointers, then a tw_cuda_failure pointer where it fails, then 64-bit sizes. */
typedef struct tw_cuda_kernel {
  const char *name;
  int32_t threads;            /* of a block, along x */
  int32_t shared_bytes;       /* dynamic shared memory */
} tw_cuda_kernel;

typedef struct tw_cuda_program {
  uint32_t version;           /* TW_CUDA_VERSION */
  uint32_t flags;
  const tw_model *model;      /* kernels and sites by number are those of the model */
  const tw_cuda_kernel *kernels;
  const tw_cuda_image *images;
  int32_t image_count;
  int32_t toolkit;            /* that made the images: 13000 for CUDA 13.0; 0 where none did */
  const char *source;         /* of the kernels, null-terminated */
} tw_cuda_program;

/* What a kernel that failed leaves; the first one wins. In memory that host and device share. */
typedef struct tw_cuda_failure {
  int32_t code;               /* a tw_status */
  int32_t site;
  int64_t found, expected;
} tw_cuda_failure;

/* What generated code sees of a call: the head's fields, and two functions behind them, by offset. */
typedef struct tw_cuda_team {
  tw_team head;
  /* Puts kernel number `kernel` into the stream. arguments: a pointer to each parameter; where the kernel fails, the one at
   * `failure` is null and set by the runtime (-1: none). Nothing is launched where `blocks` is 0. */
  int32_t (*launch)(struct tw_cuda_team *team, int32_t kernel, int64_t blocks, void **arguments, int32_t failure); /* offset 32 */
  /* Waits for what was launched and reads a bool: 0 or 1, or a negative status, upon which the program leaves. */
  int32_t (*read)(struct tw_cuda_team *team, const void *place);                                                   /* offset 40 */
} tw_cuda_team;

/* A model on a device: its code, its constants, and the memory of its calls. */
typedef struct tw_cuda_instance tw_cuda_instance;

/* How many devices there are; TW_ERROR_DRIVER with a message where there is no driver. */
int32_t tw_cuda_count_devices(const tw_context *context, int32_t *count);

typedef struct tw_cuda_facts {
  char name[128];
  char architecture[16];      /* "sm_90"; "emulated" */
  int32_t driver;             /* the CUDA version that the driver is for: 13000 */
  int32_t multiprocessors;
  int32_t shared_bytes;       /* that a block may ask for */
  int64_t memory_bytes, free_bytes;
} tw_cuda_facts;

int32_t tw_cuda_describe_device(const tw_context *context, int32_t device, tw_cuda_facts *facts);

/* Puts the model on a device. `constants`: the segment in host memory, which is copied; null when it is embedded or empty. */
int32_t tw_cuda_load(const tw_cuda_program *program, const tw_context *context, int32_t device, const uint8_t *constants,
                     tw_cuda_instance **instance);
void tw_cuda_unload(tw_cuda_instance *instance); /* waits for calls under way; null is allowed */

/* One call: inputs and outputs are device memory, C-contiguous, outputs apart from all else; `stream` a CUstream, null for the
 * default one. Returns when all is in the stream, or for a program whose control flow depends on memory when that is decided.
 * Repeated with the same sizes and addresses it becomes one launch of a graph. */
int32_t tw_cuda_run(tw_cuda_instance *instance, const tw_context *context, const void *const *inputs, void *const *outputs,
                    const int64_t *shapes, void *stream);

/* One call with inputs and outputs in host memory: copied through pinned memory, done when it returns. */
int32_t tw_cuda_run_host(tw_cuda_instance *instance, const tw_context *context, const void *const *inputs, void *const *outputs,
                         const int64_t *shapes);

/* Waits for the calls in the stream and tells whether a kernel of theirs failed (a call that was not waited for tells it at the
 * next one in that stream). */
int32_t tw_cuda_wait(tw_cuda_instance *instance, const tw_context *context, void *stream);

/* As tw_cuda_run, kernel after kernel with an event before and behind each; waits. Adds to microseconds[kernel_count], and
 * writes (kernel, start, end) of each launch in microseconds since the first one to launches[capacity][3]; *count: how many
 * there were. */
int32_t tw_cuda_profile(tw_cuda_instance *instance, const tw_context *context, const void *const *inputs, void *const *outputs,
                        const int64_t *shapes, void *stream, double *microseconds, double *launches, int64_t capacity, int64_t *count);

/* Memory of the device that results of calls in `stream` lie in. What was released is used again by calls in that stream alone, in
 * its order, as frameworks do it. */
int32_t tw_cuda_allocate(const tw_context *context, int32_t device, void *stream, int64_t bytes, void **memory);
void tw_cuda_release(int32_t device, void *memory);

/* Copies between host memory and that of a device, after what is in `stream` and before the return. */
int32_t tw_cuda_copy_in(const tw_context *context, int32_t device, void *target, const void *source, int64_t bytes, void *stream);
int32_t tw_cuda_copy_out(const tw_context *context, int32_t device, void *target, const void *source, int64_t bytes, void *stream);

/* The device that the memory belongs to, or -1 for memory of the host. */
int32_t tw_cuda_device_of(const tw_context *context, const void *memory, int32_t *device);

#ifdef __cplusplus
}
#endif
#endif
