/* Opening devices, and their memory; see cuda_device.h. */
#include "cuda_device.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"
#include "run.h"

namespace {

const int32_t most_devices = 64;
const int64_t small_step = 512, large_step = int64_t(2) << 20, large_block = int64_t(1) << 20;

struct memory_block {
  tw_device_pointer memory;
  int64_t bytes;
  void *stream;
  int32_t used;
};

struct device_entry {
  tw_cuda_device device; /* the first field: callers hold its address */
  memory_block *blocks;
  int32_t count, capacity;
};

device_entry cuda_devices[most_devices];
pthread_mutex_t cuda_devices_lock = PTHREAD_MUTEX_INITIALIZER;

class DevicesLocked {
 public:
  DevicesLocked() { pthread_mutex_lock(&cuda_devices_lock); }
  ~DevicesLocked() { pthread_mutex_unlock(&cuda_devices_lock); }
};

int64_t rounded_bytes(int64_t bytes) {
  const int64_t step = bytes > large_block ? large_step : small_step;
  return bytes > INT64_MAX - step ? bytes : (bytes + step - 1) / step * step;
}

/* The unused block of the stream that fits best, without wasting more than half of it; -1: none. */
int32_t find_unused(const device_entry *entry, void *stream, int64_t bytes) {
  int32_t best = -1;
  for (int32_t index = 0; index < entry->count; index++) {
    const memory_block *block = &entry->blocks[index];
    if (block->used || block->stream != stream || block->bytes < bytes || (block->bytes > large_block && block->bytes / 2 > bytes)) continue;
    if (best < 0 || block->bytes < entry->blocks[best].bytes) best = index;
  }
  return best;
}

/* Gives the driver what nobody uses, of all streams or of one; it waits for the device meanwhile. */
void release_unused(device_entry *entry, bool all, void *stream) {
  int32_t kept = 0;
  for (int32_t index = 0; index < entry->count; index++) {
    if (entry->blocks[index].used || !(all || entry->blocks[index].stream == stream))
      entry->blocks[kept++] = entry->blocks[index];
    else
      entry->device.driver->release(entry->blocks[index].memory);
  }
  entry->count = kept;
}

bool make_room(device_entry *entry) {
  if (entry->count < entry->capacity) return true;
  const int32_t capacity = entry->capacity == 0 ? 64 : entry->capacity * 2;
  void *grown = realloc(entry->blocks, sizeof(memory_block) * (size_t)capacity);
  if (grown == nullptr) return false;
  entry->blocks = (memory_block *)grown;
  entry->capacity = capacity;
  return true;
}

int32_t report_full(device_entry *entry, const tw_context *context, const char *subject, const char *purpose, int64_t bytes) {
  size_t free_bytes = 0, all_bytes = 0;
  entry->device.driver->memory_info(&free_bytes, &all_bytes);
  return tw_report(context, TW_ERROR_MEMORY, "%s: needs %lld bytes of device memory for %s, but only %lld of the %lld bytes of device %d are "
                   "free; use smaller sizes", subject, (long long)bytes, purpose, (long long)free_bytes, (long long)all_bytes, entry->device.number);
}

int32_t open_device(const tw_cuda_driver *driver, const tw_context *context, tw_cuda_device *device, int32_t number) {
  int count = 0, handle = 0, major = 0, minor = 0;
  int error = driver->device_count(&count);
  if (error == TW_CU_SUCCESS && (number < 0 || number >= count))
    return tw_report(context, TW_ERROR_DRIVER, "no CUDA device %d: found %d device%s", number, count, count == 1 ? "" : "s");
  if (error == TW_CU_SUCCESS) error = driver->device(&handle, number);
  if (error == TW_CU_SUCCESS) error = driver->device_attribute(&major, TW_CU_MAJOR, handle);
  if (error == TW_CU_SUCCESS) error = driver->device_attribute(&minor, TW_CU_MINOR, handle);
  if (error == TW_CU_SUCCESS) error = driver->retain_context(&device->context, handle);
  if (error != TW_CU_SUCCESS) return tw_cuda_report(context, "CUDA", "the device cannot be opened", error);
  device->number = number;
  device->handle = handle;
  device->major = major;
  device->minor = minor;
  device->emulated = driver->emulated_fault != nullptr;
  device->driver = driver;
  return TW_OK;
}

}  // namespace

extern "C" int32_t tw_cuda_open_device(const tw_context *context, int32_t number, tw_cuda_device **device) {
  int32_t status = TW_OK;
  const tw_cuda_driver *driver = tw_cuda_open_driver(context, &status);
  if (driver == nullptr) return status;
  if (number < 0 || number >= most_devices)
    return tw_report(context, TW_ERROR_DRIVER, "no CUDA device %d: expected a number from 0 to %d", number, most_devices - 1);
  DevicesLocked locked;
  tw_cuda_device *found = &cuda_devices[number].device;
  if (found->driver == nullptr) status = open_device(driver, context, found, number);
  if (status == TW_OK) *device = found;
  return status;
}

extern "C" int32_t tw_cuda_enter(tw_cuda_device *device, const tw_context *context, const char *subject) {
  int32_t status = TW_OK;
  if (tw_cuda_open_driver(context, &status) == nullptr) return status; /* forked meanwhile */
  const int lost = __atomic_load_n(&device->lost, __ATOMIC_RELAXED);
  if (lost != 0) return tw_cuda_report(context, subject, "a kernel failed before this call", lost);
  const int error = device->driver->push_context(device->context);
  return error == TW_CU_SUCCESS ? TW_OK : tw_cuda_fail(device, context, subject, "its device cannot be entered", error);
}

extern "C" void tw_cuda_leave(tw_cuda_device *device) {
  tw_cu_context before;
  device->driver->pop_context(&before);
}

extern "C" int32_t tw_cuda_fail(tw_cuda_device *device, const tw_context *context, const char *subject, const char *what, int error) {
  if (tw_cuda_is_sticky(error)) __atomic_store_n(&device->lost, error, __ATOMIC_RELAXED);
  return tw_cuda_report(context, subject, what, error);
}

extern "C" int32_t tw_cuda_take(tw_cuda_device *device, const tw_context *context, void *stream, int64_t bytes, const char *subject,
                                const char *purpose, void **memory) {
  DevicesLocked locked;
  device_entry *entry = reinterpret_cast<device_entry *>(device);
  const int64_t whole = rounded_bytes(bytes > 0 ? bytes : 1);
  int32_t index = find_unused(entry, stream, whole);
  if (index < 0) {
    if (!make_room(entry)) return tw_report(context, TW_ERROR_MEMORY, "%s: no memory for the list of blocks", subject);
    tw_device_pointer found = 0;
    int error = device->driver->allocate(&found, (size_t)whole);
    if (error == TW_CU_OUT_OF_MEMORY) {
      release_unused(entry, true, nullptr);
      error = device->driver->allocate(&found, (size_t)whole);
    }
    if (error == TW_CU_OUT_OF_MEMORY) return report_full(entry, context, subject, purpose, bytes);
    if (error != TW_CU_SUCCESS) return tw_cuda_fail(device, context, subject, "allocating device memory failed", error);
    index = entry->count++;
    entry->blocks[index] = {found, whole, stream, 0};
  }
  entry->blocks[index].used = 1;
  *memory = reinterpret_cast<void *>((uintptr_t)entry->blocks[index].memory);
  return TW_OK;
}

extern "C" void tw_cuda_give(tw_cuda_device *device, void *memory) {
  if (memory == nullptr) return;
  DevicesLocked locked;
  device_entry *entry = reinterpret_cast<device_entry *>(device);
  for (int32_t index = 0; index < entry->count; index++)
    if (entry->blocks[index].memory == (uintptr_t)memory) entry->blocks[index].used = 0;
}

extern "C" void tw_cuda_discard(tw_cuda_device *device, void *stream) {
  DevicesLocked locked;
  release_unused(reinterpret_cast<device_entry *>(device), false, stream);
}

extern "C" int32_t tw_cuda_count_devices(const tw_context *context, int32_t *count) {
  int32_t status = TW_OK;
  const tw_cuda_driver *driver = tw_cuda_open_driver(context, &status);
  if (driver == nullptr) return status;
  const int error = driver->device_count(count);
  return error == TW_CU_SUCCESS ? TW_OK : tw_cuda_report(context, "CUDA", "the devices cannot be counted", error);
}

extern "C" int32_t tw_cuda_describe_device(const tw_context *context, int32_t number, tw_cuda_facts *facts) {
  tw_cuda_device *device = nullptr;
  int32_t status = tw_cuda_open_device(context, number, &device);
  if (status == TW_OK) status = tw_cuda_enter(device, context, "CUDA");
  if (status != TW_OK) return status;
  memset(facts, 0, sizeof *facts);
  const tw_cuda_driver *driver = device->driver;
  size_t all_bytes = 0, free_bytes = 0;
  int error = driver->device_name(facts->name, (int)sizeof facts->name, device->handle);
  if (error == TW_CU_SUCCESS) error = driver->device_attribute(&facts->multiprocessors, TW_CU_MULTIPROCESSORS, device->handle);
  if (error == TW_CU_SUCCESS) error = driver->device_attribute(&facts->shared_bytes, TW_CU_SHARED_OPT_IN, device->handle);
  if (error == TW_CU_SUCCESS) error = driver->memory_info(&free_bytes, &all_bytes);
  tw_cuda_leave(device);
  if (error != TW_CU_SUCCESS) return tw_cuda_fail(device, context, "CUDA", "the device cannot be described", error);
  if (device->emulated)
    snprintf(facts->architecture, sizeof facts->architecture, "emulated");
  else
    snprintf(facts->architecture, sizeof facts->architecture, "sm_%d%d", device->major, device->minor);
  facts->driver = driver->version;
  facts->memory_bytes = (int64_t)all_bytes;
  facts->free_bytes = (int64_t)free_bytes;
  return TW_OK;
}

extern "C" int32_t tw_cuda_allocate(const tw_context *context, int32_t number, void *stream, int64_t bytes, void **memory) {
  tw_cuda_device *device = nullptr;
  int32_t status = tw_cuda_open_device(context, number, &device);
  if (status == TW_OK) status = tw_cuda_enter(device, context, "CUDA");
  if (status != TW_OK) return status;
  status = tw_cuda_take(device, context, stream, bytes, "CUDA", "a result", memory);
  tw_cuda_leave(device);
  return status;
}

extern "C" void tw_cuda_release(int32_t number, void *memory) {
  if (number >= 0 && number < most_devices && cuda_devices[number].device.driver != nullptr) tw_cuda_give(&cuda_devices[number].device, memory);
}

namespace {

/* Opens and enters the device and runs a copy, which it waits for. */
template <typename Copy>
int32_t copy_and_wait(const tw_context *context, int32_t number, void *stream, const Copy &copy) {
  tw_cuda_device *device = nullptr;
  int32_t status = tw_cuda_open_device(context, number, &device);
  if (status == TW_OK) status = tw_cuda_enter(device, context, "CUDA");
  if (status != TW_OK) return status;
  int error = copy(device->driver);
  if (error == TW_CU_SUCCESS) error = device->driver->wait_stream(static_cast<tw_cu_stream>(stream));
  tw_cuda_leave(device);
  return error == TW_CU_SUCCESS ? TW_OK : tw_cuda_fail(device, context, "CUDA", "copying failed", error);
}

}  // namespace

extern "C" int32_t tw_cuda_copy_in(const tw_context *context, int32_t device, void *target, const void *source, int64_t bytes, void *stream) {
  if (bytes == 0) return TW_OK;
  return copy_and_wait(context, device, stream, [=](const tw_cuda_driver *driver) {
    return driver->copy_in((uintptr_t)target, source, (size_t)bytes, static_cast<tw_cu_stream>(stream));
  });
}

extern "C" int32_t tw_cuda_copy_out(const tw_context *context, int32_t device, void *target, const void *source, int64_t bytes, void *stream) {
  if (bytes == 0) return TW_OK;
  return copy_and_wait(context, device, stream, [=](const tw_cuda_driver *driver) {
    return driver->copy_out(target, (uintptr_t)source, (size_t)bytes, static_cast<tw_cu_stream>(stream));
  });
}

extern "C" int32_t tw_cuda_device_of(const tw_context *context, const void *memory, int32_t *number) {
  int32_t status = TW_OK;
  const tw_cuda_driver *driver = tw_cuda_open_driver(context, &status);
  if (driver == nullptr) return status;
  int found = -1;
  if (driver->pointer_attribute(&found, TW_CU_POINTER_ORDINAL, (uintptr_t)memory) != TW_CU_SUCCESS) found = -1;
  *number = found;
  return TW_OK;
}
