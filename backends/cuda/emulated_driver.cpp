// An emulated CUDA driver: exports the cu* functions that csrc/cuda_driver.h lists, over host memory, for tests without a GPU.
//
// Device memory is host memory with a limit; a module is a host shared library as emulate.py makes it (emulation.h). Streams run as late as
// they may: at a synchronization, so what reads a result before that finds old bytes. Every function checks that a context is
// current, that handles are alive and that a kernel did not fail before, whose error stays as it does on a device.
// `tw_emulated_configure` sets what the devices are and which calls fail; `tw_emulated_calls` counts calls.
// Thread safety: one lock around everything.

#include <dlfcn.h>
#include <elf.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "emulation.h"

namespace {

enum Result {
  kSuccess = 0, kInvalidValue = 1, kOutOfMemory = 2, kNoDevice = 100, kInvalidDevice = 101, kInvalidImage = 200, kInvalidContext = 201,
  kNoBinary = 209, kInvalidPtx = 218, kInvalidHandle = 400, kNotFound = 500, kNotReady = 600, kLaunchFailed = 719, kCaptureUnsupported = 900
};

using Operation = std::function<int()>;

struct Context {
  int device = 0;
};

struct Event {
  double milliseconds = -1;
};

struct Graph {
  std::vector<Operation> operations;
};

struct Stream {
  Context *context = nullptr;
  bool blocking = true; // waits for the default stream, and that one for it
  std::vector<Operation> queue;
  std::unique_ptr<Graph> captured;
};

struct Module {
  void *library = nullptr;
  int file = -1;
  Context *context = nullptr;
};

struct Function {
  Module *module = nullptr;
  std::string name;
  std::vector<unsigned> parameter_bytes;
};

struct Allocation {
  uint64_t bytes = 0;
  int device = 0;
  bool host = false;
};

struct Failure {
  long calls_before = 0;
  int error = 0;
};

struct Driver {
  std::recursive_mutex lock;
  int devices = 1, version = 13000, major = 9, minor = 0, sticky = 0;
  uint64_t memory = uint64_t(1) << 30, used = 0;
  std::string fault;
  std::map<std::string, Failure> failures;
  std::map<std::string, long> calls;
  std::map<uint64_t, Allocation> allocations;
  std::map<int, Context> contexts;
  std::map<int, Stream> default_streams;
  std::set<Stream *> streams;
  std::set<Event *> events;
  std::set<Graph *> graphs, executables;
  std::set<Module *> modules;
  std::set<Function *> functions;
};

// Never destroyed: callers may come as late as the process ends.
Driver &driver() {
  static Driver *const only = new Driver;
  return *only;
}

thread_local std::vector<Context *> current;

using Locked = std::lock_guard<std::recursive_mutex>;

// What stands before every function: counts the call and gives the error that it is to fail with, or 0.
int begin(const char *name, bool needs_context = true) {
  Driver &d = driver();
  d.calls[name]++;
  auto failure = d.failures.find(name);
  if (failure != d.failures.end() && failure->second.calls_before-- == 0) {
    const int error = failure->second.error;
    d.failures.erase(failure);
    return error;
  }
  if (d.sticky != 0) return d.sticky;
  return needs_context && (current.empty() || current.back() == nullptr) ? kInvalidContext : kSuccess;
}

double now_milliseconds() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return double(time.tv_sec) * 1e3 + double(time.tv_nsec) * 1e-6;
}

// Runs what waits in the stream; after a kernel's failure nothing runs any more.
int drain(Stream *stream) {
  Driver &d = driver();
  std::vector<Operation> queue;
  queue.swap(stream->queue);
  for (Operation &operation : queue) {
    if (d.sticky != 0) break;
    const int error = operation();
    if (error != kSuccess) d.sticky = error;
  }
  return d.sticky;
}

// The stream of a handle: null and 1 are the default one of the current context; nullptr for one that was destroyed.
Stream *stream_of(void *handle) {
  Driver &d = driver();
  if (handle == nullptr || handle == reinterpret_cast<void *>(1)) {
    Stream &stream = d.default_streams[current.back()->device];
    stream.context = current.back();
    return &stream;
  }
  Stream *stream = static_cast<Stream *>(handle);
  return d.streams.count(stream) != 0 && stream->context == current.back() ? stream : nullptr;
}

int enqueue(void *handle, Operation operation) {
  Driver &d = driver();
  Stream *stream = stream_of(handle);
  if (stream == nullptr) return kInvalidHandle;
  if (stream->captured != nullptr) {
    stream->captured->operations.push_back(std::move(operation));
    return kSuccess;
  }
  Stream *fallback = &d.default_streams[current.back()->device];
  if (stream == fallback) {
    for (Stream *other : d.streams)
      if (other->blocking && other->context == current.back()) drain(other);
  } else if (stream->blocking) {
    drain(fallback);
  }
  if (d.sticky != 0) return d.sticky;
  stream->queue.push_back(std::move(operation));
  return kSuccess;
}

int drain_context(Context *context) {
  Driver &d = driver();
  for (Stream *stream : d.streams)
    if (stream->context == context) drain(stream);
  drain(&d.default_streams[context->device]);
  return d.sticky;
}

// --- memory ---

bool lies_in_device(uint64_t place, uint64_t bytes) {
  Driver &d = driver();
  auto after = d.allocations.upper_bound(place);
  if (after == d.allocations.begin()) return false;
  --after;
  return place + bytes <= after->first + after->second.bytes;
}

int allocate(uint64_t bytes, bool host, void **memory) {
  Driver &d = driver();
  if (bytes == 0) return kInvalidValue;
  if (!host && d.used + bytes > d.memory) return kOutOfMemory;
  if (posix_memalign(memory, 512, bytes) != 0) return kOutOfMemory;
  std::memset(*memory, 0xCD, bytes); // what nobody wrote is never zero by chance
  d.allocations[reinterpret_cast<uint64_t>(*memory)] = {bytes, current.back()->device, host};
  if (!host) d.used += bytes;
  return kSuccess;
}

int release(uint64_t memory, bool host) {
  Driver &d = driver();
  drain_context(current.back()); // as the device does: memory in use is not released
  auto found = d.allocations.find(memory);
  if (found == d.allocations.end() || found->second.host != host) return kInvalidValue;
  if (!host) d.used -= found->second.bytes;
  std::free(reinterpret_cast<void *>(memory));
  d.allocations.erase(found);
  return d.sticky;
}

// --- modules ---

uint64_t elf_bytes(const void *image) {
  Elf64_Ehdr header;
  std::memcpy(&header, image, sizeof header);
  if (std::memcmp(header.e_ident, ELFMAG, SELFMAG) != 0 || header.e_type != ET_DYN) return 0;
  return header.e_shoff + uint64_t(header.e_shnum) * header.e_shentsize;
}

int load(const void *image, Module **result) {
  const uint64_t bytes = elf_bytes(image);
  if (bytes == 0) return std::memcmp(image, ELFMAG, SELFMAG) == 0 ? kNoBinary : kInvalidImage;
  auto module = std::make_unique<Module>();
  module->context = current.back();
  module->file = memfd_create("tilewright-emulation", MFD_CLOEXEC);
  if (module->file < 0 || write(module->file, image, bytes) != ssize_t(bytes)) return kOutOfMemory;
  const std::string path = "/proc/self/fd/" + std::to_string(module->file);
  module->library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (module->library == nullptr) {
    driver().fault = dlerror();
    close(module->file);
    return kInvalidImage;
  }
  driver().modules.insert(module.get());
  *result = module.release();
  return kSuccess;
}

// The bytes of a launch's parameters as they are now, and pointers to them.
struct Parameters {
  std::vector<std::vector<unsigned char>> values;
  std::vector<void *> pointers;
};

Parameters copy_parameters(const Function *function, void **arguments) {
  Parameters result;
  for (size_t index = 0; index < function->parameter_bytes.size(); index++) {
    const unsigned char *place = static_cast<const unsigned char *>(arguments[index]);
    result.values.emplace_back(place, place + function->parameter_bytes[index]);
  }
  return result;
}

int run_kernel(const Function *function, const unsigned *grid, const unsigned *block, unsigned shared_bytes, Parameters parameters) {
  Driver &d = driver();
  for (auto &value : parameters.values) parameters.pointers.push_back(value.data());
  std::vector<tw_emulated_range> ranges;
  for (const auto &[place, allocation] : d.allocations) ranges.push_back({place, allocation.bytes, 1});
  auto start = reinterpret_cast<decltype(&tw_emulated_launch)>(dlsym(function->module->library, "tw_emulated_launch"));
  char message[1024] = "";
  const int status = start(function->name.c_str(), grid, block, shared_bytes, parameters.pointers.data(), ranges.data(), ranges.size(),
                           message, sizeof message);
  if (status == TW_EMULATED_DONE) return kSuccess;
  d.fault = message;
  return status == TW_EMULATED_BAD_LAUNCH ? kInvalidValue : kLaunchFailed;
}

const char *error_name(int error) {
  switch (error) {
    case kSuccess: return "CUDA_SUCCESS";
    case kInvalidValue: return "CUDA_ERROR_INVALID_VALUE";
    case kOutOfMemory: return "CUDA_ERROR_OUT_OF_MEMORY";
    case kNoDevice: return "CUDA_ERROR_NO_DEVICE";
    case kInvalidDevice: return "CUDA_ERROR_INVALID_DEVICE";
    case kInvalidImage: return "CUDA_ERROR_INVALID_IMAGE";
    case kInvalidContext: return "CUDA_ERROR_INVALID_CONTEXT";
    case kNoBinary: return "CUDA_ERROR_NO_BINARY_FOR_GPU";
    case kInvalidPtx: return "CUDA_ERROR_INVALID_PTX";
    case 222: return "CUDA_ERROR_UNSUPPORTED_PTX_VERSION";
    case kInvalidHandle: return "CUDA_ERROR_INVALID_HANDLE";
    case kNotFound: return "CUDA_ERROR_NOT_FOUND";
    case 700: return "CUDA_ERROR_ILLEGAL_ADDRESS";
    case kLaunchFailed: return "CUDA_ERROR_LAUNCH_FAILED";
    case kCaptureUnsupported: return "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
    default: return "CUDA_ERROR_UNKNOWN";
  }
}

// "name=value" to a number of the driver; "fail=cuMemAlloc_v2:0:2" lets the next call (after 0 others) fail with 2.
void configure(const std::string &item) {
  Driver &d = driver();
  const size_t equals = item.find('=');
  const std::string name = item.substr(0, equals), value = equals == std::string::npos ? "" : item.substr(equals + 1);
  if (name == "devices") d.devices = std::stoi(value);
  if (name == "version") d.version = std::stoi(value);
  if (name == "capability") d.major = std::stoi(value) / 10, d.minor = std::stoi(value) % 10;
  if (name == "memory") d.memory = std::stoull(value);
  if (name == "recover") d.sticky = 0;
  if (name == "count") d.calls.clear();
  if (name != "fail") return;
  const size_t first = value.find(':'), second = value.find(':', first + 1);
  d.failures[value.substr(0, first)] = {std::stol(value.substr(first + 1, second - first - 1)), std::stoi(value.substr(second + 1))};
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Items with commas between them; see configure.
EXPORTED void tw_emulated_configure(const char *text) {
  Locked locked(driver().lock);
  std::istringstream items(text);
  for (std::string item; std::getline(items, item, ',');) configure(item);
}

EXPORTED long tw_emulated_calls(const char *name) {
  Locked locked(driver().lock);
  return driver().calls[name];
}

EXPORTED unsigned long long tw_emulated_used(void) {
  Locked locked(driver().lock);
  return driver().used;
}

EXPORTED const char *tw_emulated_fault(void) { return driver().fault.c_str(); }

EXPORTED int cuInit(unsigned) {
  Locked locked(driver().lock);
  if (int error = begin("cuInit", false)) return error;
  return driver().devices > 0 ? kSuccess : kNoDevice;
}

EXPORTED int cuDriverGetVersion(int *version) {
  Locked locked(driver().lock);
  *version = driver().version;
  return kSuccess;
}

EXPORTED int cuGetErrorName(int error, const char **text) {
  *text = error_name(error);
  return kSuccess;
}

EXPORTED int cuGetErrorString(int error, const char **text) {
  switch (error) {
    case kOutOfMemory: *text = "out of memory"; break;
    case kLaunchFailed: *text = "unspecified launch failure"; break;
    case 700: *text = "an illegal memory access was encountered"; break;
    default: *text = "emulated failure";
  }
  return kSuccess;
}

EXPORTED int cuDeviceGetCount(int *count) {
  Locked locked(driver().lock);
  *count = driver().devices;
  return begin("cuDeviceGetCount", false);
}

EXPORTED int cuDeviceGet(int *device, int number) {
  Locked locked(driver().lock);
  *device = number;
  return number < driver().devices ? begin("cuDeviceGet", false) : int(kInvalidDevice);
}

EXPORTED int cuDeviceGetName(char *name, int capacity, int) {
  std::strncpy(name, "emulated device", size_t(capacity));
  return kSuccess;
}

EXPORTED int cuDeviceGetAttribute(int *value, int attribute, int) {
  Locked locked(driver().lock);
  const std::map<int, int> known = {{16, 4}, {75, driver().major}, {76, driver().minor}, {97, 227 << 10}};
  auto found = known.find(attribute);
  *value = found == known.end() ? 0 : found->second;
  return found == known.end() ? kInvalidValue : kSuccess;
}

EXPORTED int cuDeviceTotalMem_v2(size_t *bytes, int) {
  *bytes = driver().memory;
  return kSuccess;
}

EXPORTED int cuDevicePrimaryCtxRetain(Context **context, int device) {
  Locked locked(driver().lock);
  if (int error = begin("cuDevicePrimaryCtxRetain", false)) return error;
  *context = &driver().contexts[device];
  (*context)->device = device;
  return kSuccess;
}

EXPORTED int cuCtxPushCurrent_v2(Context *context) {
  Locked locked(driver().lock);
  current.push_back(context);
  return begin("cuCtxPushCurrent_v2", false);
}

EXPORTED int cuCtxPopCurrent_v2(Context **context) {
  if (current.empty()) return kInvalidContext;
  *context = current.back();
  current.pop_back();
  return kSuccess;
}

EXPORTED int cuCtxSynchronize(void) {
  Locked locked(driver().lock);
  if (int error = begin("cuCtxSynchronize")) return error;
  return drain_context(current.back());
}

EXPORTED int cuModuleLoadDataEx(Module **module, const void *image, unsigned, int *, void **) {
  Locked locked(driver().lock);
  if (int error = begin("cuModuleLoadDataEx")) return error;
  return load(image, module);
}

EXPORTED int cuModuleUnload(Module *module) {
  Locked locked(driver().lock);
  if (int error = begin("cuModuleUnload")) return error;
  if (driver().modules.erase(module) == 0) return kInvalidHandle;
  drain_context(module->context);
  dlclose(module->library);
  close(module->file);
  delete module;
  return driver().sticky;
}

EXPORTED int cuModuleGetFunction(Function **function, Module *module, const char *name) {
  Locked locked(driver().lock);
  if (int error = begin("cuModuleGetFunction")) return error;
  if (driver().modules.count(module) == 0) return kInvalidHandle;
  auto find = reinterpret_cast<decltype(&tw_emulated_find)>(dlsym(module->library, "tw_emulated_find"));
  int count = 0;
  unsigned bytes[TW_EMULATED_PARAMETERS];
  if (find == nullptr || find(name, &count, bytes) == 0) return kNotFound;
  *function = new Function{module, name, std::vector<unsigned>(bytes, bytes + count)};
  driver().functions.insert(*function);
  return kSuccess;
}

EXPORTED int cuFuncSetAttribute(Function *, int, int value) {
  Locked locked(driver().lock);
  if (int error = begin("cuFuncSetAttribute")) return error;
  return value <= (227 << 10) ? kSuccess : kInvalidValue;
}

EXPORTED int cuMemAlloc_v2(uint64_t *memory, size_t bytes) {
  Locked locked(driver().lock);
  if (int error = begin("cuMemAlloc_v2")) return error;
  return allocate(bytes, false, reinterpret_cast<void **>(memory));
}

EXPORTED int cuMemFree_v2(uint64_t memory) {
  Locked locked(driver().lock);
  if (int error = begin("cuMemFree_v2")) return error;
  return release(memory, false);
}

EXPORTED int cuMemGetInfo_v2(size_t *free_bytes, size_t *bytes) {
  Locked locked(driver().lock);
  *bytes = driver().memory;
  *free_bytes = driver().memory - driver().used;
  return begin("cuMemGetInfo_v2");
}

EXPORTED int cuMemHostAlloc(void **memory, size_t bytes, unsigned) {
  Locked locked(driver().lock);
  if (int error = begin("cuMemHostAlloc")) return error;
  return allocate(bytes, true, memory);
}

EXPORTED int cuMemFreeHost(void *memory) {
  Locked locked(driver().lock);
  if (int error = begin("cuMemFreeHost")) return error;
  return release(reinterpret_cast<uint64_t>(memory), true);
}

EXPORTED int cuMemHostGetDevicePointer_v2(uint64_t *device, void *memory, unsigned) {
  *device = reinterpret_cast<uint64_t>(memory);
  return kSuccess;
}

EXPORTED int cuPointerGetAttribute(void *value, int attribute, uint64_t memory) {
  Locked locked(driver().lock);
  if (attribute != 9 || !lies_in_device(memory, 1)) return kInvalidValue;
  *static_cast<int *>(value) = (--driver().allocations.upper_bound(memory))->second.device;
  return kSuccess;
}

EXPORTED int cuMemcpyHtoDAsync_v2(uint64_t target, const void *source, size_t bytes, void *stream) {
  Locked locked(driver().lock);
  if (int error = begin("cuMemcpyHtoDAsync_v2")) return error;
  if (!lies_in_device(target, bytes)) return kInvalidValue;
  return enqueue(stream, [=] {
    std::memcpy(reinterpret_cast<void *>(target), source, bytes);
    return int(kSuccess);
  });
}

EXPORTED int cuMemcpyDtoHAsync_v2(void *target, uint64_t source, size_t bytes, void *stream) {
  Locked locked(driver().lock);
  if (int error = begin("cuMemcpyDtoHAsync_v2")) return error;
  if (!lies_in_device(source, bytes)) return kInvalidValue;
  return enqueue(stream, [=] {
    std::memcpy(target, reinterpret_cast<void *>(source), bytes);
    return int(kSuccess);
  });
}

EXPORTED int cuStreamCreate(Stream **stream, unsigned flags) {
  Locked locked(driver().lock);
  if (int error = begin("cuStreamCreate")) return error;
  *stream = new Stream;
  (*stream)->context = current.back();
  (*stream)->blocking = flags == 0;
  driver().streams.insert(*stream);
  return kSuccess;
}

EXPORTED int cuStreamDestroy_v2(Stream *stream) {
  Locked locked(driver().lock);
  if (int error = begin("cuStreamDestroy_v2")) return error;
  if (driver().streams.count(stream) == 0) return kInvalidHandle;
  drain(stream);
  driver().streams.erase(stream);
  delete stream;
  return kSuccess;
}

EXPORTED int cuStreamSynchronize(void *handle) {
  Locked locked(driver().lock);
  if (int error = begin("cuStreamSynchronize")) return error;
  Stream *stream = stream_of(handle);
  if (stream == nullptr) return kInvalidHandle;
  return stream->captured != nullptr ? int(kCaptureUnsupported) : drain(stream);
}

EXPORTED int cuStreamIsCapturing(void *handle, int *status) {
  Locked locked(driver().lock);
  if (int error = begin("cuStreamIsCapturing")) return error;
  Stream *stream = stream_of(handle);
  *status = stream != nullptr && stream->captured != nullptr;
  return stream == nullptr ? kInvalidHandle : kSuccess;
}

EXPORTED int cuStreamBeginCapture_v2(void *handle, int) {
  Locked locked(driver().lock);
  if (int error = begin("cuStreamBeginCapture_v2")) return error;
  Stream *stream = stream_of(handle);
  if (stream == nullptr || driver().streams.count(stream) == 0) return kCaptureUnsupported; // the default stream is not captured
  stream->captured = std::make_unique<Graph>();
  return kSuccess;
}

EXPORTED int cuStreamEndCapture(void *handle, Graph **graph) {
  Locked locked(driver().lock);
  const int refused = begin("cuStreamEndCapture");
  Stream *stream = stream_of(handle);
  if (refused != kSuccess && stream != nullptr) stream->captured.reset(); // a capture that fails has ended
  if (refused != kSuccess) return refused;
  if (stream == nullptr || stream->captured == nullptr) return kInvalidValue;
  *graph = stream->captured.release();
  driver().graphs.insert(*graph);
  return kSuccess;
}

EXPORTED int cuGraphInstantiateWithFlags(Graph **exec, Graph *graph, unsigned long long) {
  Locked locked(driver().lock);
  if (int error = begin("cuGraphInstantiateWithFlags")) return error;
  if (driver().graphs.count(graph) == 0) return kInvalidHandle;
  *exec = new Graph(*graph);
  driver().executables.insert(*exec);
  return kSuccess;
}

EXPORTED int cuGraphLaunch(Graph *exec, void *stream) {
  Locked locked(driver().lock);
  if (int error = begin("cuGraphLaunch")) return error;
  if (driver().executables.count(exec) == 0) return kInvalidHandle;
  return enqueue(stream, [graph = *exec] {
    for (const Operation &operation : graph.operations)
      if (int error = operation()) return error;
    return int(kSuccess);
  });
}

EXPORTED int cuGraphDestroy(Graph *graph) {
  Locked locked(driver().lock);
  if (driver().graphs.erase(graph) == 0) return kInvalidHandle;
  delete graph;
  return kSuccess;
}

EXPORTED int cuGraphExecDestroy(Graph *exec) {
  Locked locked(driver().lock);
  if (driver().executables.erase(exec) == 0) return kInvalidHandle;
  delete exec;
  return kSuccess;
}

EXPORTED int cuEventCreate(Event **event, unsigned) {
  Locked locked(driver().lock);
  if (int error = begin("cuEventCreate")) return error;
  *event = new Event;
  driver().events.insert(*event);
  return kSuccess;
}

EXPORTED int cuEventRecord(Event *event, void *stream) {
  Locked locked(driver().lock);
  if (int error = begin("cuEventRecord")) return error;
  if (driver().events.count(event) == 0) return kInvalidHandle;
  return enqueue(stream, [event] {
    event->milliseconds = now_milliseconds();
    return int(kSuccess);
  });
}

EXPORTED int cuEventElapsedTime(float *milliseconds, Event *start, Event *end) {
  Locked locked(driver().lock);
  if (start->milliseconds < 0 || end->milliseconds < 0) return kNotReady;
  *milliseconds = float(end->milliseconds - start->milliseconds);
  return kSuccess;
}

EXPORTED int cuEventDestroy_v2(Event *event) {
  Locked locked(driver().lock);
  if (driver().events.erase(event) == 0) return kInvalidHandle;
  delete event;
  return kSuccess;
}

EXPORTED int cuLaunchKernel(Function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                            unsigned block_z, unsigned shared_bytes, void *stream, void **arguments, void **) {
  Locked locked(driver().lock);
  if (int error = begin("cuLaunchKernel")) return error;
  if (driver().functions.count(function) == 0 || driver().modules.count(function->module) == 0) return kInvalidHandle;
  if (grid_x * grid_y * grid_z == 0 || block_x * block_y * block_z == 0 || block_x * block_y * block_z > 1024) return kInvalidValue;
  const std::vector<unsigned> grid = {grid_x, grid_y, grid_z}, block = {block_x, block_y, block_z};
  return enqueue(stream, [=, parameters = copy_parameters(function, arguments)] {
    return run_kernel(function, grid.data(), block.data(), shared_bytes, parameters);
  });
}
