/* Calls of a model on a device: kernel after kernel, as a graph, with host memory, and timed; see cuda.h. */
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_instance.h"
#include "run.h"

namespace {

const int64_t most_pinned = int64_t(4) << 20, call_alignment = 256;
const int32_t most_pieces = 64;

/* What a call with events writes down; all belongs to tw_cuda_profile. */
struct call_times {
  tw_cu_event *events; /* before and behind each launch */
  int32_t *kernels;
  int64_t count, capacity;
};

/* One call. Generated code sees the head. */
struct device_call {
  tw_cuda_team team; /* the first field */
  tw_cuda_instance *instance;
  const tw_context *context;
  tw_cuda_stream_state *state;
  tw_cu_stream stream;
  const void *const *inputs;
  void *const *outputs;
  const int64_t *shapes;
  int64_t launches;
  call_times *times; /* null: not timed */
};

/* The instance's lock and its device's context, for as long as a call is in here. */
class CallScope {
 public:
  CallScope(tw_cuda_instance *instance, const tw_context *context) : instance_(instance) {
    pthread_mutex_lock(&instance->lock);
    status = tw_cuda_enter(instance->device, context, tw_cuda_subject(instance));
  }
  CallScope(const CallScope &) = delete;
  CallScope &operator=(const CallScope &) = delete;
  ~CallScope() {
    if (status == TW_OK) tw_cuda_leave(instance_->device);
    pthread_mutex_unlock(&instance_->lock);
  }
  int32_t status;

 private:
  tw_cuda_instance *instance_;
};

/* --- what generated code calls --- */

bool note_time(device_call *call, int32_t kernel) {
  call_times *times = call->times;
  if (times == nullptr || times->count >= times->capacity) return true;
  tw_cu_event *event = &times->events[2 * times->count + (kernel >= 0 ? 1 : 0)];
  const tw_cuda_driver *driver = call->instance->device->driver;
  if (driver->create_event(event, TW_CU_EVENT_DEFAULT) != TW_CU_SUCCESS || driver->record_event(*event, call->stream) != TW_CU_SUCCESS) return false;
  if (kernel >= 0) times->kernels[times->count++] = kernel;
  return true;
}

int32_t launch_kernel(tw_cuda_team *team, int32_t number, int64_t blocks, void **arguments, int32_t failure) {
  device_call *call = reinterpret_cast<device_call *>(team);
  tw_cuda_instance *instance = call->instance;
  const tw_cuda_kernel *kernel = &instance->program->kernels[number];
  if (blocks == 0) return TW_OK;
  if (blocks < 0 || blocks > INT_MAX)
    return tw_report(call->context, TW_ERROR_MEMORY, "%s: kernel %s needs %lld blocks, expected at most %d; use smaller sizes",
                     tw_cuda_subject(instance), kernel->name, (long long)blocks, INT_MAX);
  if (failure >= 0) arguments[failure] = &call->state->failure_on_device;
  call->launches++;
  if (!note_time(call, -1)) call->times->capacity = call->times->count;
  const int error = instance->device->driver->launch(instance->functions[number], (unsigned)blocks, 1, 1, (unsigned)kernel->threads, 1, 1,
                                                     (unsigned)kernel->shared_bytes, call->stream, arguments, nullptr);
  if (error == TW_CU_SUCCESS && !note_time(call, number)) call->times->capacity = call->times->count;
  if (error == TW_CU_SUCCESS) return TW_OK;
  char what[256];
  snprintf(what, sizeof what, "launching kernel %s (%lld blocks of %d threads, %d bytes of shared memory) failed", kernel->name,
           (long long)blocks, kernel->threads, kernel->shared_bytes);
  return tw_cuda_refused(instance, call->context, what, error);
}

/* Waits for the state's stream, and tells of what a kernel in it recorded. */
int32_t settle(tw_cuda_instance *instance, const tw_context *context, tw_cuda_stream_state *state) {
  const int error = instance->device->driver->wait_stream(state->stream);
  state->pending = 0;
  if (error != TW_CU_SUCCESS) return tw_cuda_refused(instance, context, "a kernel failed", error);
  const tw_cuda_failure failure = *state->failure;
  if (failure.code == TW_OK) return TW_OK;
  memset(state->failure, 0, sizeof *state->failure);
  return tw_report_failure(instance->program->model, context, failure.code, failure.site, failure.found, failure.expected);
}

int32_t read_condition(tw_cuda_team *team, const void *place) {
  device_call *call = reinterpret_cast<device_call *>(team);
  uint8_t *value = reinterpret_cast<uint8_t *>(call->state->failure + 1);
  const int error = call->instance->device->driver->copy_out(value, (uintptr_t)place, 1, call->stream);
  if (error != TW_CU_SUCCESS) return tw_cuda_refused(call->instance, call->context, "reading a condition failed", error);
  const int32_t status = settle(call->instance, call->context, call->state);
  return status != TW_OK ? status : *value != 0;
}

void fail_call(tw_team *, int32_t, int32_t, int64_t, int64_t) {} /* kernels record their failures on the device */

/* Puts all launches of the call into its stream. */
int32_t run_steps(device_call *call) {
  memset(&call->team, 0, sizeof call->team);
  call->team.head.fail = fail_call;
  call->team.head.threads = 1;
  call->team.launch = launch_kernel;
  call->team.read = read_condition;
  call->launches = 0;
  tw_cuda_instance *instance = call->instance;
  return instance->program->model->thread(&call->team.head, call->inputs, call->outputs, call->shapes,
                                          static_cast<const uint8_t *>(instance->constants), static_cast<uint8_t *>(call->state->workspace), 0, 1);
}

/* --- graphs --- */

int64_t key_words(const tw_cuda_instance *instance) {
  return instance->shape_entries + instance->program->model->input_count + instance->program->model->output_count;
}

bool key_equals(const device_call *call, const uint64_t *key) {
  const tw_cuda_instance *instance = call->instance;
  const size_t inputs = (size_t)instance->program->model->input_count, outputs = (size_t)instance->program->model->output_count;
  const size_t shapes = (size_t)instance->shape_entries;
  return (shapes == 0 || memcmp(key, call->shapes, shapes * 8) == 0) && (inputs == 0 || memcmp(key + shapes, call->inputs, inputs * 8) == 0) &&
         (outputs == 0 || memcmp(key + shapes + inputs, call->outputs, outputs * 8) == 0);
}

void fill_key(const device_call *call, uint64_t *key) {
  const tw_cuda_instance *instance = call->instance;
  const size_t inputs = (size_t)instance->program->model->input_count, outputs = (size_t)instance->program->model->output_count;
  const size_t shapes = (size_t)instance->shape_entries;
  if (shapes > 0) memcpy(key, call->shapes, shapes * 8);
  if (inputs > 0) memcpy(key + shapes, call->inputs, inputs * 8);
  if (outputs > 0) memcpy(key + shapes + inputs, call->outputs, outputs * 8);
}

/* The place of a call with these sizes and addresses: known, or new (key null) in that of the one used longest ago. */
tw_cuda_call *place_of_call(device_call *call) {
  tw_cuda_call *oldest = &call->state->calls[0];
  for (tw_cuda_call &known : call->state->calls) {
    if (known.key != nullptr && key_equals(call, known.key)) return &known;
    if (known.key == nullptr || (oldest->key != nullptr && known.used < oldest->used)) oldest = &known;
  }
  if (oldest->graph != nullptr) call->instance->device->driver->destroy_exec(oldest->graph);
  free(oldest->key);
  memset(oldest, 0, sizeof *oldest);
  return oldest;
}

/* The call's launches as a graph; null where the driver does not make one, upon which calls go kernel after kernel. */
tw_cu_graph_exec capture(device_call *call) {
  const tw_cuda_driver *driver = call->instance->device->driver;
  tw_cu_stream stream = call->instance->own;
  if (driver->begin_capture(stream, TW_CU_CAPTURE_THREAD) != TW_CU_SUCCESS) return nullptr;
  device_call captured = *call;
  captured.stream = stream;
  captured.context = nullptr;
  const int32_t status = run_steps(&captured);
  tw_cu_graph graph = nullptr;
  tw_cu_graph_exec result = nullptr;
  const int error = driver->end_capture(stream, &graph);
  if (status == TW_OK && error == TW_CU_SUCCESS && driver->instantiate(&result, graph, 0) != TW_CU_SUCCESS) result = nullptr;
  if (graph != nullptr) driver->destroy_graph(graph);
  return result;
}

bool is_captured_by_caller(const device_call *call) {
  if (call->stream == call->instance->own) return false;
  int capturing = 0;
  const int error = call->instance->device->driver->is_capturing(call->stream, &capturing);
  return error != TW_CU_SUCCESS || capturing != 0;
}

/* The first call with some sizes and addresses goes kernel after kernel, the second is captured, and each one from there is
 * one launch. */
int32_t run_or_replay(device_call *call) {
  tw_cuda_instance *instance = call->instance;
  if (!instance->graphs || call->times != nullptr || is_captured_by_caller(call)) return run_steps(call);
  tw_cuda_call *place = place_of_call(call);
  place->used = ++instance->clock;
  if (place->key == nullptr) {
    const int32_t status = run_steps(call);
    if (status != TW_OK || call->launches < 2) return status; /* one launch gains nothing */
    place->key = static_cast<uint64_t *>(malloc((size_t)key_words(instance) * 8 + 8));
    if (place->key != nullptr) fill_key(call, place->key);
    return status;
  }
  if (place->graph == nullptr) place->graph = capture(call);
  if (place->graph == nullptr) {
    instance->graphs = 0;
    return run_steps(call);
  }
  const int error = instance->device->driver->launch_graph(place->graph, call->stream);
  return error == TW_CU_SUCCESS ? TW_OK : tw_cuda_refused(instance, call->context, "launching its graph failed", error);
}

/* --- calls --- */

/* Kernels access 16 bytes at a time, and elsewhere that would end the device's context. */
const uintptr_t call_access = 16;

int32_t check_addresses(const device_call *call) {
  const tw_model *model = call->instance->program->model;
  for (int32_t index = 0; index < model->input_count + model->output_count; index++) {
    const bool given = index < model->input_count;
    const int32_t number = given ? index : index - model->input_count;
    if (given ? call->inputs == nullptr : call->outputs == nullptr) continue; /* `prepare` says so */
    const uintptr_t past = reinterpret_cast<uintptr_t>(given ? call->inputs[number] : call->outputs[number]) % call_access;
    if (past != 0)
      return tw_report(call->context, TW_ERROR_ARGUMENT, "%s: %s %s begins %d bytes after a multiple of 16", model->name,
                       given ? "input" : "output", (given ? model->inputs : model->outputs)[number].name, static_cast<int>(past));
  }
  return TW_OK;
}

/* Plans the call and finds the memory for it. An earlier call that failed in this stream and was not waited for is told of now. */
int32_t prepare(device_call *call, int64_t *output_shapes) {
  tw_cuda_instance *instance = call->instance;
  const tw_model *model = instance->program->model;
  if ((call->inputs == nullptr && model->input_count > 0) || (call->outputs == nullptr && model->output_count > 0))
    return tw_report(call->context, TW_ERROR_ARGUMENT, "%s: the list of inputs or outputs is null", model->name);
  int64_t bytes = 0;
  int32_t status = tw_plan_model(model, call->context, call->shapes, output_shapes, &bytes);
  if (status == TW_OK) status = tw_cuda_state_of(instance, call->context, call->stream, bytes, &call->state);
  if (status != TW_OK || __atomic_load_n(&call->state->failure->code, __ATOMIC_ACQUIRE) == TW_OK) return status;
  return settle(instance, call->context, call->state);
}

int32_t enqueue(device_call *call) {
  call->state->pending = 1;
  return run_or_replay(call);
}

device_call call_of(tw_cuda_instance *instance, const tw_context *context, const void *const *inputs, void *const *outputs,
                    const int64_t *shapes, void *stream) {
  static const int64_t no_shape = 0;
  device_call call;
  memset(&call, 0, sizeof call);
  call.instance = instance;
  call.context = context;
  call.inputs = inputs;
  call.outputs = outputs;
  call.shapes = shapes == nullptr ? &no_shape : shapes;
  call.stream = static_cast<tw_cu_stream>(stream);
  return call;
}

/* --- host memory --- */

int64_t aligned_bytes(int64_t bytes) { return (bytes + call_alignment - 1) / call_alignment * call_alignment; }

/* Writes the bytes of each tensor; their sum, each aligned. shapes: all dims in order. */
int64_t measure(const tw_tensor_descriptor *tensors, int32_t count, const int64_t *shapes, int64_t *bytes) {
  int64_t total = 0;
  for (int32_t index = 0; index < count; index++) {
    bytes[index] = tw_dtype_bytes(tensors[index].dtype);
    for (int32_t axis = 0; axis < tensors[index].rank; axis++) bytes[index] *= *shapes++;
    total += aligned_bytes(bytes[index]);
  }
  return total;
}

/* Pinned memory for the arrays of a call, or for parts of them, and device memory for all of them. */
int32_t stage(tw_cuda_instance *instance, const tw_context *context, int64_t bytes) {
  const tw_cuda_driver *driver = instance->device->driver;
  const int64_t pinned = bytes < most_pinned ? (bytes < 65536 ? 65536 : bytes) : most_pinned;
  if (pinned > instance->pinned_bytes) {
    if (instance->pinned != nullptr) driver->release_host(instance->pinned);
    instance->pinned = nullptr;
    instance->pinned_bytes = 0;
    const int error = driver->allocate_host(reinterpret_cast<void **>(&instance->pinned), (size_t)pinned, TW_CU_HOST_PORTABLE_MAPPED);
    if (error != TW_CU_SUCCESS) return tw_cuda_refused(instance, context, "allocating pinned memory failed", error);
    instance->pinned_bytes = pinned;
  }
  if (bytes <= instance->staged_bytes) return TW_OK;
  tw_cuda_give(instance->device, instance->staged);
  instance->staged = nullptr;
  instance->staged_bytes = 0;
  const int32_t status = tw_cuda_take(instance->device, context, instance->own, bytes, tw_cuda_subject(instance), "its inputs and outputs",
                                      &instance->staged);
  if (status == TW_OK) instance->staged_bytes = bytes;
  return status;
}

int32_t copy_inputs(tw_cuda_instance *instance, const tw_context *context, const void *const *sources, const int64_t *bytes, void *const *targets) {
  const tw_cuda_driver *driver = instance->device->driver;
  int64_t used = 0;
  int error = TW_CU_SUCCESS;
  for (int32_t index = 0; index < instance->program->model->input_count; index++) {
    for (int64_t done = 0; done < bytes[index] && error == TW_CU_SUCCESS;) {
      if (used == instance->pinned_bytes) {
        error = driver->wait_stream(instance->own); /* what was copied from it is on its way no more */
        used = 0;
        if (error != TW_CU_SUCCESS) break;
      }
      const int64_t left = bytes[index] - done, room = instance->pinned_bytes - used, piece = left < room ? left : room;
      memcpy(instance->pinned + used, static_cast<const uint8_t *>(sources[index]) + done, (size_t)piece);
      error = driver->copy_in((uintptr_t)targets[index] + (uint64_t)done, instance->pinned + used, (size_t)piece, instance->own);
      used += piece;
      done += piece;
    }
  }
  return error == TW_CU_SUCCESS ? TW_OK : tw_cuda_refused(instance, context, "copying its inputs failed", error);
}

/* Outputs come in pieces that fill the pinned memory: each batch is waited for once. */
struct piece_of_output {
  uint8_t *target;
  int64_t offset, bytes;
};

int32_t copy_outputs(tw_cuda_instance *instance, const tw_context *context, tw_cuda_stream_state *state, void *const *sources,
                     const int64_t *bytes, void *const *targets) {
  const tw_cuda_driver *driver = instance->device->driver;
  const int32_t outputs = instance->program->model->output_count;
  int32_t index = 0;
  int64_t done = 0;
  do {
    piece_of_output pieces[most_pieces];
    int32_t count = 0;
    int64_t used = 0;
    while (index < outputs && count < most_pieces && used < instance->pinned_bytes) {
      const int64_t left = bytes[index] - done, room = instance->pinned_bytes - used, size = left < room ? left : room;
      if (size > 0) {
        const int error = driver->copy_out(instance->pinned + used, (uintptr_t)sources[index] + (uint64_t)done, (size_t)size, instance->own);
        if (error != TW_CU_SUCCESS) return tw_cuda_refused(instance, context, "copying its outputs failed", error);
        pieces[count++] = {static_cast<uint8_t *>(targets[index]) + done, used, size};
      }
      used += size;
      done += size;
      if (done == bytes[index]) {
        index++;
        done = 0;
      }
    }
    const int32_t status = settle(instance, context, state);
    if (status != TW_OK) return status;
    for (int32_t piece = 0; piece < count; piece++)
      memcpy(pieces[piece].target, instance->pinned + pieces[piece].offset, (size_t)pieces[piece].bytes);
  } while (index < outputs);
  return TW_OK;
}

/* The sizes and places of a call's arrays, in one allocation. */
struct staged_arrays {
  int64_t *bytes;  /* of inputs, then outputs */
  void **device;   /* likewise */
  int64_t *output_shapes;
  void *memory;
};

bool allocate_arrays(const tw_model *model, staged_arrays *arrays) {
  const size_t count = (size_t)(model->input_count + model->output_count);
  size_t dims = 0;
  for (int32_t index = 0; index < model->output_count; index++) dims += (size_t)model->outputs[index].rank;
  arrays->memory = calloc(2 * count + dims + 1, 8);
  arrays->bytes = static_cast<int64_t *>(arrays->memory);
  arrays->device = static_cast<void **>(arrays->memory) + count;
  arrays->output_shapes = arrays->bytes + 2 * count;
  return arrays->memory != nullptr;
}

int32_t run_staged(device_call *call, staged_arrays *arrays, void *const *results) {
  tw_cuda_instance *instance = call->instance;
  const tw_model *model = instance->program->model;
  const void *const *given = call->inputs;
  int32_t status = prepare(call, arrays->output_shapes);
  if (status != TW_OK) return status;
  int64_t total = measure(model->inputs, model->input_count, call->shapes, arrays->bytes);
  total += measure(model->outputs, model->output_count, arrays->output_shapes, arrays->bytes + model->input_count);
  status = stage(instance, call->context, total);
  if (status != TW_OK) return status;
  uint8_t *place = static_cast<uint8_t *>(instance->staged);
  for (int32_t index = 0; index < model->input_count + model->output_count; index++) {
    arrays->device[index] = place;
    place += aligned_bytes(arrays->bytes[index]);
  }
  status = copy_inputs(instance, call->context, given, arrays->bytes, arrays->device);
  if (status != TW_OK) return status;
  call->inputs = arrays->device;
  call->outputs = arrays->device + model->input_count;
  status = enqueue(call);
  if (status != TW_OK) return status;
  return copy_outputs(instance, call->context, call->state, call->outputs, arrays->bytes + model->input_count, results);
}

/* --- times --- */

void read_times(const tw_cuda_driver *driver, const call_times *times, double *microseconds, double *launches) {
  for (int64_t index = 0; index < times->count; index++) {
    float start = 0, length = 0;
    driver->elapsed(&start, times->events[0], times->events[2 * index]);
    driver->elapsed(&length, times->events[2 * index], times->events[2 * index + 1]);
    microseconds[times->kernels[index]] += length * 1e3;
    launches[3 * index] = times->kernels[index];
    launches[3 * index + 1] = start * 1e3;
    launches[3 * index + 2] = (start + length) * 1e3;
  }
}

}  // namespace

extern "C" int32_t tw_cuda_run(tw_cuda_instance *instance, const tw_context *context, const void *const *inputs, void *const *outputs,
                               const int64_t *shapes, void *stream) {
  CallScope scope(instance, context);
  if (scope.status != TW_OK) return scope.status;
  device_call call = call_of(instance, context, inputs, outputs, shapes, stream);
  int32_t status = check_addresses(&call);
  if (status == TW_OK) status = prepare(&call, nullptr);
  return status == TW_OK ? enqueue(&call) : status;
}

extern "C" int32_t tw_cuda_run_host(tw_cuda_instance *instance, const tw_context *context, const void *const *inputs, void *const *outputs,
                                    const int64_t *shapes) {
  CallScope scope(instance, context);
  if (scope.status != TW_OK) return scope.status;
  device_call call = call_of(instance, context, inputs, outputs, shapes, instance->own);
  staged_arrays arrays;
  if (!allocate_arrays(instance->program->model, &arrays))
    return tw_report(context, TW_ERROR_MEMORY, "%s: no memory for a call", tw_cuda_subject(instance));
  const int32_t status = run_staged(&call, &arrays, outputs);
  if (status != TW_OK) instance->device->driver->wait_stream(instance->own); /* pinned memory must not be in use by the next call */
  free(arrays.memory);
  return status;
}

extern "C" int32_t tw_cuda_wait(tw_cuda_instance *instance, const tw_context *context, void *stream) {
  CallScope scope(instance, context);
  if (scope.status != TW_OK) return scope.status;
  for (tw_cuda_stream_state &state : instance->streams)
    if (state.taken && state.stream == static_cast<tw_cu_stream>(stream)) return settle(instance, context, &state);
  return TW_OK;
}

extern "C" int32_t tw_cuda_profile(tw_cuda_instance *instance, const tw_context *context, const void *const *inputs, void *const *outputs,
                                   const int64_t *shapes, void *stream, double *microseconds, double *launches, int64_t capacity,
                                   int64_t *count) {
  CallScope scope(instance, context);
  if (scope.status != TW_OK) return scope.status;
  device_call call = call_of(instance, context, inputs, outputs, shapes, stream);
  call_times times = {static_cast<tw_cu_event *>(calloc((size_t)capacity * 2 + 2, sizeof(tw_cu_event))),
                      static_cast<int32_t *>(calloc((size_t)capacity + 1, sizeof(int32_t))), 0, capacity};
  call.times = &times;
  const bool has_room = times.events != nullptr && times.kernels != nullptr;
  int32_t status = has_room ? check_addresses(&call)
                            : tw_report(context, TW_ERROR_MEMORY, "%s: no memory for its times", tw_cuda_subject(instance));
  if (status == TW_OK) status = prepare(&call, nullptr);
  if (status == TW_OK) status = enqueue(&call);
  if (status == TW_OK) status = settle(instance, context, call.state);
  if (status == TW_OK) read_times(instance->device->driver, &times, microseconds, launches);
  *count = times.count;
  for (int64_t index = 0; times.events != nullptr && index < 2 * capacity; index++)
    if (times.events[index] != nullptr) instance->device->driver->destroy_event(times.events[index]);
  free(times.events);
  free(times.kernels);
  return status;
}
