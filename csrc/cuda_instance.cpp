/* Loading a model's code and constants on a device, and the memory of its calls; see cuda.h. */
#include "cuda_instance.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "run.h"

namespace {

/* How well the image suits the device: 0 not at all; code for this very device before code that it also runs before PTX. */
int32_t suitability(const tw_cuda_image *image, const tw_cuda_device *device) {
  int32_t number = 0;
  char suffix = 0;
  if (strcmp(image->architecture, "emulated") == 0) return device->emulated ? 10000 : 0;
  if (device->emulated) return 0;
  const int32_t capability = device->major * 10 + device->minor;
  if (sscanf(image->architecture, "sm_%d%c", &number, &suffix) >= 1) {
    if (suffix == 'a') return number == capability ? 3000 : 0; /* for one architecture alone */
    if (suffix == 'f') return number / 10 == device->major && number <= capability ? 2500 + number : 0;
    return number / 10 == device->major && number <= capability ? 2000 + number : 0;
  }
  if (sscanf(image->architecture, "compute_%d%c", &number, &suffix) == 1) return number <= capability ? 1000 + number : 0;
  return 0;
}

int32_t choose_image(const tw_cuda_instance *instance, const tw_context *context, const tw_cuda_image **image) {
  const tw_cuda_program *program = instance->program;
  int32_t best = 0;
  char names[256] = "";
  size_t used = 0;
  for (int32_t index = 0; index < program->image_count; index++) {
    const tw_cuda_image *next = &program->images[index];
    const int32_t suits = suitability(next, instance->device);
    if (suits > best) *image = next;
    if (suits > best) best = suits;
    const int written = snprintf(names + used, sizeof names - used, "%s%s", index == 0 ? "" : ", ", next->architecture);
    if (written > 0 && used + (size_t)written < sizeof names) used += (size_t)written;
  }
  if (best > 0) return TW_OK;
  if (instance->device->emulated)
    return tw_report(context, TW_ERROR_DRIVER, "%s: compiled for %s, found an emulated device; compile it for target=\"cuda\" there",
                     program->model->name, names);
  return tw_report(context, TW_ERROR_DRIVER, "%s: compiled for %s, which device %d (sm_%d%d) does not run; compile it for target=\"cuda:sm_%d%d\"",
                   program->model->name, names, instance->device->number, instance->device->major, instance->device->minor,
                   instance->device->major, instance->device->minor);
}

int32_t load_image(tw_cuda_instance *instance, const tw_context *context, const tw_cuda_image *image) {
  const tw_cuda_program *program = instance->program;
  const tw_cuda_driver *driver = instance->device->driver;
  char log[1024] = "";
  int options[] = {TW_CU_JIT_ERROR_LOG, TW_CU_JIT_ERROR_LOG_BYTES};
  void *values[] = {log, reinterpret_cast<void *>(sizeof log)};
  const int error = driver->load_module(&instance->module, image->data, 2, options, values);
  if (error == TW_CU_SUCCESS) return TW_OK;
  log[sizeof log - 1] = 0;
  char what[1400];
  const bool unknown = error == TW_CU_INVALID_IMAGE || error == TW_CU_NO_BINARY || error == TW_CU_INVALID_PTX || error == TW_CU_UNSUPPORTED_PTX;
  if (unknown && program->toolkit / 1000 > driver->version / 1000) {
    snprintf(what, sizeof what, "the driver is for CUDA %d.%d, older than CUDA %d.%d that compiled it; update the driver, or compile with "
             "an older toolkit", driver->version / 1000, driver->version % 1000 / 10, program->toolkit / 1000, program->toolkit % 1000 / 10);
    tw_cuda_refused(instance, context, what, error);
    return TW_ERROR_DRIVER;
  }
  snprintf(what, sizeof what, "its code for %s cannot be loaded%s%s", image->architecture, log[0] == 0 ? "" : ": ", log);
  return tw_cuda_refused(instance, context, what, error);
}

int32_t find_functions(tw_cuda_instance *instance, const tw_context *context) {
  const tw_cuda_program *program = instance->program;
  const tw_cuda_driver *driver = instance->device->driver;
  for (int32_t index = 0; index < program->model->kernel_count; index++) {
    const tw_cuda_kernel *kernel = &program->kernels[index];
    int error = driver->find_function(&instance->functions[index], instance->module, kernel->name);
    if (error == TW_CU_SUCCESS && kernel->shared_bytes > 0)
      error = driver->set_function(instance->functions[index], TW_CU_FUNCTION_DYNAMIC_SHARED, kernel->shared_bytes);
    if (error == TW_CU_SUCCESS) continue;
    char what[200];
    snprintf(what, sizeof what, "kernel %s (%d bytes of shared memory) cannot be prepared", kernel->name, kernel->shared_bytes);
    return tw_cuda_fail(instance->device, context, program->model->name, what, error);
  }
  return TW_OK;
}

int32_t copy_constants(tw_cuda_instance *instance, const tw_context *context, const uint8_t *constants) {
  const tw_model *model = instance->program->model;
  if (constants == nullptr) constants = model->constants;
  if (model->constants_bytes == 0) return TW_OK;
  if (constants == nullptr)
    return tw_report(context, TW_ERROR_ARGUMENT, "%s: its constants (%lld bytes) are not given; open them first", model->name,
                     (long long)model->constants_bytes);
  int32_t status = tw_cuda_take(instance->device, context, instance->own, model->constants_bytes, model->name, "its constants", &instance->constants);
  if (status != TW_OK) return status;
  const tw_cuda_driver *driver = instance->device->driver;
  int error = driver->copy_in((uintptr_t)instance->constants, constants, (size_t)model->constants_bytes, instance->own);
  if (error == TW_CU_SUCCESS) error = driver->wait_stream(instance->own);
  return error == TW_CU_SUCCESS ? TW_OK : tw_cuda_fail(instance->device, context, model->name, "copying its constants failed", error);
}

int32_t fill_instance(tw_cuda_instance *instance, const tw_context *context, const uint8_t *constants) {
  const tw_cuda_image *image = nullptr;
  const bool has_kernels = instance->program->model->kernel_count > 0; /* a program may only hand on what it is given */
  int32_t status = has_kernels ? choose_image(instance, context, &image) : TW_OK;
  if (status != TW_OK) return status;
  const int error = instance->device->driver->create_stream(&instance->own, TW_CU_STREAM_NON_BLOCKING);
  if (error != TW_CU_SUCCESS) return tw_cuda_refused(instance, context, "no stream can be made", error);
  if (has_kernels) status = load_image(instance, context, image);
  if (status == TW_OK) status = find_functions(instance, context);
  if (status == TW_OK) status = copy_constants(instance, context, constants);
  return status;
}

void drop_state(tw_cuda_instance *instance, tw_cuda_stream_state *state) {
  tw_cuda_forget_calls(instance, state);
  tw_cuda_give(instance->device, state->workspace);
  if (state->failure != nullptr) instance->device->driver->release_host(state->failure);
  memset(state, 0, sizeof *state);
}

/* Frees all; the context is entered. What the device still runs is waited for. */
void clear_instance(tw_cuda_instance *instance) {
  const tw_cuda_driver *driver = instance->device->driver;
  driver->wait_context(); /* not each stream: a caller may have destroyed his */
  for (tw_cuda_stream_state &state : instance->streams) drop_state(instance, &state);
  if (instance->module != nullptr) driver->unload_module(instance->module);
  if (instance->pinned != nullptr) driver->release_host(instance->pinned);
  tw_cuda_give(instance->device, instance->constants);
  tw_cuda_give(instance->device, instance->staged);
  if (instance->own == nullptr) return;
  tw_cuda_discard(instance->device, instance->own);
  driver->destroy_stream(instance->own);
}

/* Host memory for what kernels of this state say of their failure. */
int32_t prepare_state(tw_cuda_instance *instance, const tw_context *context, tw_cuda_stream_state *state) {
  const tw_cuda_driver *driver = instance->device->driver;
  void *memory = nullptr;
  int error = driver->allocate_host(&memory, sizeof(tw_cuda_failure) + 16, TW_CU_HOST_PORTABLE_MAPPED);
  if (error != TW_CU_SUCCESS) return tw_cuda_refused(instance, context, "allocating pinned memory failed", error);
  state->failure = static_cast<tw_cuda_failure *>(memory);
  memset(memory, 0, sizeof(tw_cuda_failure) + 16);
  error = driver->host_on_device(&state->failure_on_device, memory, 0);
  return error == TW_CU_SUCCESS ? TW_OK : tw_cuda_refused(instance, context, "mapping pinned memory failed", error);
}

/* The state of the stream, or one that is free, or the one that was used longest ago, once its stream is done. */
tw_cuda_stream_state *place_of_state(tw_cuda_instance *instance, tw_cu_stream stream) {
  tw_cuda_stream_state *oldest = &instance->streams[0];
  for (tw_cuda_stream_state &state : instance->streams) {
    if (state.taken && state.stream == stream) return &state;
    if (!state.taken || (oldest->taken && state.used < oldest->used)) oldest = &state;
  }
  if (oldest->taken) instance->device->driver->wait_context();
  drop_state(instance, oldest);
  return oldest;
}

}  // namespace

extern "C" int32_t tw_cuda_load(const tw_cuda_program *program, const tw_context *context, int32_t number, const uint8_t *constants,
                                tw_cuda_instance **result) {
  *result = nullptr;
  if (program == nullptr || program->version != TW_CUDA_VERSION)
    return tw_report(context, TW_ERROR_VERSION, "the artifact is for another version of the CUDA runtime; compile the model again");
  const tw_model *model = program->model;
  int32_t status = tw_choose_variant(&model, context);
  tw_cuda_device *device = nullptr;
  if (status == TW_OK) status = tw_cuda_open_device(context, number, &device);
  if (status == TW_OK) status = tw_cuda_enter(device, context, program->model->name);
  if (status != TW_OK) return status;
  tw_cuda_instance *instance = static_cast<tw_cuda_instance *>(calloc(1, sizeof(tw_cuda_instance)));
  tw_cu_function *functions = static_cast<tw_cu_function *>(calloc((size_t)program->model->kernel_count + 1, sizeof(tw_cu_function)));
  if (instance == nullptr || functions == nullptr) {
    status = tw_report(context, TW_ERROR_MEMORY, "%s: no memory to load it", program->model->name);
  } else {
    instance->program = program;
    instance->device = device;
    instance->functions = functions;
    instance->graphs = (program->flags & TW_CUDA_READS_CONDITIONS) == 0;
    for (int32_t index = 0; index < model->input_count; index++) instance->shape_entries += model->inputs[index].rank;
    pthread_mutex_init(&instance->lock, nullptr);
    status = fill_instance(instance, context, constants);
    if (status != TW_OK) clear_instance(instance);
  }
  tw_cuda_leave(device);
  if (status == TW_OK) {
    *result = instance;
    return TW_OK;
  }
  free(functions);
  free(instance);
  return status;
}

extern "C" void tw_cuda_unload(tw_cuda_instance *instance) {
  if (instance == nullptr) return;
  if (tw_cuda_enter(instance->device, nullptr, tw_cuda_subject(instance)) == TW_OK) {
    clear_instance(instance);
    tw_cuda_leave(instance->device);
  } else { /* the context, and all in it, is gone */
    for (tw_cuda_stream_state &state : instance->streams)
      for (tw_cuda_call &call : state.calls) free(call.key);
  }
  pthread_mutex_destroy(&instance->lock);
  free(instance->functions);
  free(instance);
}

extern "C" int32_t tw_cuda_state_of(tw_cuda_instance *instance, const tw_context *context, tw_cu_stream stream, int64_t workspace_bytes,
                                    tw_cuda_stream_state **result) {
  tw_cuda_stream_state *state = place_of_state(instance, stream);
  if (!state->taken) {
    const int32_t status = prepare_state(instance, context, state);
    if (status != TW_OK) {
      drop_state(instance, state);
      return status;
    }
    state->stream = stream;
    state->taken = 1;
  }
  state->used = ++instance->clock;
  *result = state;
  if (workspace_bytes <= state->workspace_bytes) return TW_OK;
  tw_cuda_forget_calls(instance, state);
  tw_cuda_give(instance->device, state->workspace);
  state->workspace = nullptr;
  state->workspace_bytes = 0;
  const int32_t status = tw_cuda_take(instance->device, context, stream, workspace_bytes, tw_cuda_subject(instance), "the workspace of a call",
                                      &state->workspace);
  if (status == TW_OK) state->workspace_bytes = workspace_bytes;
  return status;
}

extern "C" void tw_cuda_forget_calls(tw_cuda_instance *instance, tw_cuda_stream_state *state) {
  for (tw_cuda_call &call : state->calls) {
    if (call.graph != nullptr) instance->device->driver->destroy_exec(call.graph);
    free(call.key);
    memset(&call, 0, sizeof call);
  }
}
