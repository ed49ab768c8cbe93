/* NVIDIA's driver, opened at run time: the functions that the runtime calls, and what their failures mean.
 *
 * No header of CUDA is needed: handles are opaque, and the few constants are spelled out here. The library is libcuda.so.1: the system's,
 * or one of that name that the process has loaded before (tests load an emulated one, backends/cuda/emulated_driver.cpp).
 * Guarantees: opened once a process, for good; a process that was forked afterwards is told so, since a driver does not survive
 * it. Thread safety: everything here may be called from any thread. C library only. */
#ifndef TILEWRIGHT_CUDA_DRIVER_H
#define TILEWRIGHT_CUDA_DRIVER_H
#include "abi.h"
#ifdef __cplusplus
extern "C" {
#endif

typedef uint64_t tw_device_pointer;
typedef struct tw_cu_context_ *tw_cu_context;
typedef struct tw_cu_module_ *tw_cu_module;
typedef struct tw_cu_function_ *tw_cu_function;
typedef struct tw_cu_stream_ *tw_cu_stream;
typedef struct tw_cu_event_ *tw_cu_event;
typedef struct tw_cu_graph_ *tw_cu_graph;
typedef struct tw_cu_graph_exec_ *tw_cu_graph_exec;

enum tw_cu_result {
  TW_CU_SUCCESS = 0, TW_CU_OUT_OF_MEMORY = 2, TW_CU_NO_DEVICE = 100, TW_CU_INVALID_IMAGE = 200, TW_CU_NO_BINARY = 209,
  TW_CU_INVALID_PTX = 218, TW_CU_UNSUPPORTED_PTX = 222, TW_CU_NOT_FOUND = 500
};
enum tw_cu_constant {
  TW_CU_MULTIPROCESSORS = 16, TW_CU_MAJOR = 75, TW_CU_MINOR = 76, TW_CU_SHARED_OPT_IN = 97, /* attributes of a device */
  TW_CU_FUNCTION_DYNAMIC_SHARED = 8,                                                       /* of a function */
  TW_CU_JIT_ERROR_LOG = 5, TW_CU_JIT_ERROR_LOG_BYTES = 6,                                  /* options of loading */
  TW_CU_POINTER_ORDINAL = 9,                                                               /* attribute of a pointer */
  TW_CU_HOST_PORTABLE_MAPPED = 3, TW_CU_STREAM_NON_BLOCKING = 1, TW_CU_CAPTURE_THREAD = 1, TW_CU_EVENT_DEFAULT = 0
};

typedef struct tw_cuda_driver {
  int (*init)(unsigned flags);
  int (*driver_version)(int *version);
  int (*error_name)(int error, const char **text);
  int (*error_string)(int error, const char **text);
  int (*device_count)(int *count);
  int (*device)(int *device, int number);
  int (*device_name)(char *name, int capacity, int device);
  int (*device_attribute)(int *value, int attribute, int device);
  int (*device_memory)(size_t *bytes, int device);
  int (*retain_context)(tw_cu_context *context, int device);
  int (*push_context)(tw_cu_context context);
  int (*pop_context)(tw_cu_context *context);
  int (*wait_context)(void);
  int (*load_module)(tw_cu_module *module, const void *image, unsigned count, int *options, void **values);
  int (*unload_module)(tw_cu_module module);
  int (*find_function)(tw_cu_function *function, tw_cu_module module, const char *name);
  int (*set_function)(tw_cu_function function, int attribute, int value);
  int (*allocate)(tw_device_pointer *memory, size_t bytes);
  int (*release)(tw_device_pointer memory);
  int (*memory_info)(size_t *free_bytes, size_t *bytes);
  int (*allocate_host)(void **memory, size_t bytes, unsigned flags);
  int (*release_host)(void *memory);
  int (*host_on_device)(tw_device_pointer *device, void *memory, unsigned flags);
  int (*pointer_attribute)(void *value, int attribute, tw_device_pointer memory);
  int (*copy_in)(tw_device_pointer target, const void *source, size_t bytes, tw_cu_stream stream);
  int (*copy_out)(void *target, tw_device_pointer source, size_t bytes, tw_cu_stream stream);
  int (*create_stream)(tw_cu_stream *stream, unsigned flags);
  int (*destroy_stream)(tw_cu_stream stream);
  int (*wait_stream)(tw_cu_stream stream);
  int (*is_capturing)(tw_cu_stream stream, int *status);
  int (*begin_capture)(tw_cu_stream stream, int mode);
  int (*end_capture)(tw_cu_stream stream, tw_cu_graph *graph);
  int (*instantiate)(tw_cu_graph_exec *exec, tw_cu_graph graph, unsigned long long flags);
  int (*launch_graph)(tw_cu_graph_exec exec, tw_cu_stream stream);
  int (*destroy_graph)(tw_cu_graph graph);
  int (*destroy_exec)(tw_cu_graph_exec exec);
  int (*create_event)(tw_cu_event *event, unsigned flags);
  int (*record_event)(tw_cu_event event, tw_cu_stream stream);
  int (*elapsed)(float *milliseconds, tw_cu_event start, tw_cu_event end);
  int (*destroy_event)(tw_cu_event event);
  int (*launch)(tw_cu_function function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                unsigned block_z, unsigned shared_bytes, tw_cu_stream stream, void **arguments, void **extra);
  /* Of the emulated driver alone, else null: the text of the last fault of a kernel. */
  const char *(*emulated_fault)(void);
  int32_t version;            /* the CUDA version that the driver is for: 13000 */
} tw_cuda_driver;

/* The driver, or null with a message in the context and TW_ERROR_DRIVER in *status. */
const tw_cuda_driver *tw_cuda_open_driver(const tw_context *context, int32_t *status);

/* Leaves the message "<subject>: <what>: CUDA_ERROR_X (n): text" and gives the status: TW_ERROR_MEMORY for out of memory,
 * TW_ERROR_DEVICE_LOST for what leaves the device's context unusable, else TW_ERROR_DEVICE. */
int32_t tw_cuda_report(const tw_context *context, const char *subject, const char *what, int error);

/* Whether the error stays: each later call in the process gives it again. */
int32_t tw_cuda_is_sticky(int error);

#ifdef __cplusplus
}
#endif
#endif
