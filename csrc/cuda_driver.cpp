/* Opening NVIDIA's driver and the text of its failures; see cuda_driver.h. */
#include "cuda_driver.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "cuda.h"
#include "run.h"

namespace {

const int32_t oldest_driver = 12000; /* graphs, images and attributes as they are used here */

struct driver_function {
  const char *name;
  void **place;
};

tw_cuda_driver cuda_driver;
pthread_mutex_t cuda_driver_lock = PTHREAD_MUTEX_INITIALIZER;
pid_t cuda_driver_process = 0; /* who opened it; 0: nobody */

template <typename Function>
void **place_of(Function &function) { return reinterpret_cast<void **>(&function); }

/* The name of the first function that the library lacks, or null. */
const char *bind_functions(void *library) {
  tw_cuda_driver &d = cuda_driver;
  const driver_function functions[] = {
      {"cuInit", place_of(d.init)},
      {"cuDriverGetVersion", place_of(d.driver_version)},
      {"cuGetErrorName", place_of(d.error_name)},
      {"cuGetErrorString", place_of(d.error_string)},
      {"cuDeviceGetCount", place_of(d.device_count)},
      {"cuDeviceGet", place_of(d.device)},
      {"cuDeviceGetName", place_of(d.device_name)},
      {"cuDeviceGetAttribute", place_of(d.device_attribute)},
      {"cuDeviceTotalMem_v2", place_of(d.device_memory)},
      {"cuDevicePrimaryCtxRetain", place_of(d.retain_context)},
      {"cuCtxPushCurrent_v2", place_of(d.push_context)},
      {"cuCtxPopCurrent_v2", place_of(d.pop_context)},
      {"cuCtxSynchronize", place_of(d.wait_context)},
      {"cuModuleLoadDataEx", place_of(d.load_module)},
      {"cuModuleUnload", place_of(d.unload_module)},
      {"cuModuleGetFunction", place_of(d.find_function)},
      {"cuFuncSetAttribute", place_of(d.set_function)},
      {"cuMemAlloc_v2", place_of(d.allocate)},
      {"cuMemFree_v2", place_of(d.release)},
      {"cuMemGetInfo_v2", place_of(d.memory_info)},
      {"cuMemHostAlloc", place_of(d.allocate_host)},
      {"cuMemFreeHost", place_of(d.release_host)},
      {"cuMemHostGetDevicePointer_v2", place_of(d.host_on_device)},
      {"cuPointerGetAttribute", place_of(d.pointer_attribute)},
      {"cuMemcpyHtoDAsync_v2", place_of(d.copy_in)},
      {"cuMemcpyDtoHAsync_v2", place_of(d.copy_out)},
      {"cuStreamCreate", place_of(d.create_stream)},
      {"cuStreamDestroy_v2", place_of(d.destroy_stream)},
      {"cuStreamSynchronize", place_of(d.wait_stream)},
      {"cuStreamIsCapturing", place_of(d.is_capturing)},
      {"cuStreamBeginCapture_v2", place_of(d.begin_capture)},
      {"cuStreamEndCapture", place_of(d.end_capture)},
      {"cuGraphInstantiateWithFlags", place_of(d.instantiate)},
      {"cuGraphLaunch", place_of(d.launch_graph)},
      {"cuGraphDestroy", place_of(d.destroy_graph)},
      {"cuGraphExecDestroy", place_of(d.destroy_exec)},
      {"cuEventCreate", place_of(d.create_event)},
      {"cuEventRecord", place_of(d.record_event)},
      {"cuEventElapsedTime", place_of(d.elapsed)},
      {"cuEventDestroy_v2", place_of(d.destroy_event)},
      {"cuLaunchKernel", place_of(d.launch)},
  };
  for (const driver_function &function : functions) {
    *function.place = dlsym(library, function.name);
    if (*function.place == nullptr) return function.name;
  }
  *place_of(d.emulated_fault) = dlsym(library, "tw_emulated_fault");
  return nullptr;
}

int32_t open_driver(const tw_context *context) {
  void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr)
    return tw_report(context, TW_ERROR_DRIVER, "no CUDA driver: %s; install NVIDIA's driver, or compile for target=\"cpu\"", dlerror());
  const char *missing = bind_functions(library);
  int version = 0;
  if (missing == nullptr && cuda_driver.driver_version(&version) != TW_CU_SUCCESS) version = 0;
  if (missing != nullptr || version < oldest_driver) {
    dlclose(library);
    char lacks[96] = "";
    if (missing != nullptr) snprintf(lacks, sizeof lacks, ", without %s", missing);
    return tw_report(context, TW_ERROR_DRIVER, "the CUDA driver is too old: found one for CUDA %d.%d%s, expected %d.%d or newer; update it",
                     version / 1000, version % 1000 / 10, lacks, oldest_driver / 1000, oldest_driver % 1000 / 10);
  }
  const int error = cuda_driver.init(0);
  if (error == TW_CU_NO_DEVICE) return tw_report(context, TW_ERROR_DRIVER, "no CUDA device: the driver finds none; compile for target=\"cpu\"");
  if (error != TW_CU_SUCCESS) {
    tw_cuda_report(context, "CUDA", "the driver does not start", error);
    return TW_ERROR_DRIVER;
  }
  cuda_driver.version = version;
  cuda_driver_process = getpid();
  return TW_OK;
}

}  // namespace

extern "C" const tw_cuda_driver *tw_cuda_open_driver(const tw_context *context, int32_t *status) {
  pthread_mutex_lock(&cuda_driver_lock);
  if (cuda_driver_process == 0)
    *status = open_driver(context);
  else if (cuda_driver_process == getpid())
    *status = TW_OK;
  else
    *status = tw_report(context, TW_ERROR_DRIVER, "this process was forked from one that uses CUDA, which the driver does not survive; "
                        "start it anew (multiprocessing: the method 'spawn')");
  pthread_mutex_unlock(&cuda_driver_lock);
  return *status == TW_OK ? &cuda_driver : nullptr;
}

extern "C" int32_t tw_cuda_is_sticky(int error) {
  switch (error) {
    case 214: case 220: case 226: /* memory or link damaged */
    case 700: case 702: case 709: case 710: case 714: case 715: case 716: case 717: case 718: case 719: case 721: /* a kernel failed */
    case 999: return 1;
    default: return 0;
  }
}

extern "C" int32_t tw_cuda_report(const tw_context *context, const char *subject, const char *what, int error) {
  const char *name = nullptr, *text = nullptr;
  if (cuda_driver.error_name == nullptr || cuda_driver.error_name(error, &name) != TW_CU_SUCCESS || name == nullptr) name = "error";
  if (cuda_driver.error_string == nullptr || cuda_driver.error_string(error, &text) != TW_CU_SUCCESS || text == nullptr) text = "unknown";
  const char *fault = cuda_driver.emulated_fault == nullptr ? nullptr : cuda_driver.emulated_fault();
  const bool sticky = tw_cuda_is_sticky(error) != 0;
  const int32_t refused = sticky ? TW_ERROR_DEVICE_LOST : TW_ERROR_DEVICE, code = error == TW_CU_OUT_OF_MEMORY ? int32_t(TW_ERROR_MEMORY) : refused;
  return tw_report(context, code, "%s: %s: %s (%d): %s%s%s%s", subject, what, name, error, text, sticky && fault != nullptr ? ": " : "",
                   sticky && fault != nullptr ? fault : "",
                   sticky ? "; this process cannot use the device any more: start a new one" : "");
}
