/* Planning and running a model: checks, workspace, the team, messages; see run.h. */
#include "run.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "constants.h"
#include "machine.h"
#include "pool.h"

namespace {

const int64_t large_workspace = int64_t(64) << 20; /* from here on ask the system first whether it has that much */

/* One call's team. Generated code sees the head; it lives on the stack of the caller. */
struct alignas(64) running_team {
  tw_team head;
  tw_barrier barrier;
  int32_t failed; /* a thread has won the right to write the failure */
  int32_t site;
  int64_t found, expected;
  /* the call */
  const tw_model *model;
  const void *const *inputs;
  void *const *outputs;
  const int64_t *shapes;
  const uint8_t *constants;
  uint8_t *workspace;
  /* profiling */
  int64_t *nanoseconds;
  int64_t last_mark;
  tw_timeline *timeline; /* may be null */
};

int64_t now() {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

int32_t team_barrier(tw_team *head) {
  running_team *team = (running_team *)head;
  return tw_barrier_wait(&team->barrier, &head->status);
}

void note_event(tw_timeline *timeline, int32_t thread, int64_t time, int64_t what) {
  int64_t place = timeline->counts[thread]++;
  if (place < timeline->capacity) timeline->events[thread * timeline->capacity + place] = {time, what};
}

/* A barrier is not told which member arrives; only a call that is timed needs to know. */
int32_t timed_barrier(tw_team *head) {
  running_team *team = (running_team *)head;
  tw_timeline *timeline = team->timeline;
  uint64_t self = (uint64_t)pthread_self();
  int32_t thread = 0;
  while (thread < timeline->threads - 1 && __atomic_load_n(&timeline->owners[thread], __ATOMIC_RELAXED) != self) thread++;
  note_event(timeline, thread, now(), TW_EVENT_ARRIVE);
  int32_t status = tw_barrier_wait(&team->barrier, &head->status);
  note_event(timeline, thread, now(), TW_EVENT_LEAVE);
  return status;
}

void team_fail(tw_team *head, int32_t code, int32_t site, int64_t found, int64_t expected) {
  running_team *team = (running_team *)head;
  int32_t nobody = 0;
  if (!__atomic_compare_exchange_n(&team->failed, &nobody, 1, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) return;
  team->site = site;
  team->found = found;
  team->expected = expected;
  __atomic_store_n(&head->status, code, __ATOMIC_RELEASE);
}

void team_mark(tw_team *head, int32_t index) {
  running_team *team = (running_team *)head;
  int64_t time = now();
  if (index >= 0 && index < team->model->kernel_count) team->nanoseconds[index] += time - team->last_mark;
  if (team->timeline != nullptr) note_event(team->timeline, 0, time, index);
  team->last_mark = time;
}

void run_thread(void *argument, int32_t thread, int32_t threads) {
  running_team *team = (running_team *)argument;
  if (team->timeline != nullptr) {
    __atomic_store_n(&team->timeline->owners[thread], (uint64_t)pthread_self(), __ATOMIC_RELAXED);
    note_event(team->timeline, thread, now(), TW_EVENT_START);
  }
  int32_t status = team->model->thread(&team->head, team->inputs, team->outputs, team->shapes, team->constants, team->workspace,
                                       thread, threads);
  if (status != TW_OK) team_fail(&team->head, status, -1, 0, 0); /* no effect after a failure with a site */
}

/* Whether this CPU has all features of the model. What was found is kept in a table by address, the lowest bit set for no:
 * parsing the list costs more than a small model runs. Correct because a model's code and this table are unloaded together,
 * or (in Python) the loader checks each one and asks for no other. */
bool runs_here(const tw_model *model) {
  static const uintptr_t lacks = 1;
  static uintptr_t known[64];
  uintptr_t self = (uintptr_t)model, *free_entry = &known[(self >> 4) % 64];
  for (uintptr_t step = 0; step < 8; step++) {
    uintptr_t *entry = &known[((self >> 4) + step) % 64], found = __atomic_load_n(entry, __ATOMIC_RELAXED);
    if ((found & ~lacks) == self) return (found & lacks) == 0;
    if (found != 0) continue;
    free_entry = entry;
    break;
  }
  char name[64];
  bool missing = tw_missing_feature(model->features, name, sizeof name) != 0;
  __atomic_store_n(free_entry, self | (missing ? lacks : 0), __ATOMIC_RELAXED);
  return !missing;
}

const tw_model *first_variant(const tw_model *model) { return model->first_variant == nullptr ? model : model->first_variant; }

/* "cpu:x86-64-v4, cpu:x86-64-v3": the model's variants from `model` back to the best one, which comes first. */
void name_variants(const tw_model *model, const tw_model *last, char *text, size_t capacity) {
  size_t used = 0;
  for (const tw_model *variant = first_variant(model); variant != nullptr && used < capacity; variant = variant->next_variant) {
    int written = snprintf(text + used, capacity - used, "%s%s", used == 0 ? "" : ", ", variant->target);
    if (written > 0) used += (size_t)written;
    if (variant == last) return;
  }
}

/* Turns a position in the list of all dims into "input 'x', axis 1". */
void name_dim(const tw_model *model, int64_t where, char *text, size_t capacity) {
  int64_t before = 0;
  for (int32_t index = 0; index < model->input_count; index++) {
    const tw_tensor_descriptor *input = &model->inputs[index];
    if (where >= before && where < before + input->rank) {
      int64_t axis = where - before;
      const char *symbol = input->dim_names == nullptr ? nullptr : input->dim_names[axis];
      snprintf(text, capacity, "input '%s', axis %lld%s%s%s", input->name, (long long)axis, symbol == nullptr ? "" : " (",
               symbol == nullptr ? "" : symbol, symbol == nullptr ? "" : ")");
      return;
    }
    before += input->rank;
  }
  snprintf(text, capacity, "shape entry %lld", (long long)where);
}

int32_t report_failure(const running_team *team, const tw_context *context) {
  return tw_report_failure(team->model, context, team->head.status, team->site, team->found, team->expected);
}

void *allocate(const tw_context *context, size_t bytes) {
  if (context != nullptr && context->allocate != nullptr) return context->allocate(context->user, bytes, 64);
  void *memory = nullptr;
  return posix_memalign(&memory, 64, bytes) == 0 ? memory : nullptr;
}

void release(const tw_context *context, void *memory) {
  if (context == nullptr || context->allocate == nullptr)
    free(memory);
  else if (context->release != nullptr)
    context->release(context->user, memory);
}

int32_t count_threads(const tw_context *context) {
  int32_t threads = context == nullptr ? 0 : context->threads;
  return threads > 0 ? threads : tw_pool_default_threads();
}

/* Memory for a run. The kernel promises more than it has and kills later, so large sizes are compared first. */
int32_t allocate_workspace(const tw_model *model, const tw_context *context, int64_t bytes, void **workspace) {
  if (bytes >= large_workspace && bytes > tw_available_memory())
    return tw_report(context, TW_ERROR_MEMORY, "%s: needs %lld bytes of workspace, but only %lld bytes of memory are available; "
                     "use smaller sizes", model->name, (long long)bytes, (long long)tw_available_memory());
  *workspace = allocate(context, (size_t)bytes);
  if (*workspace == nullptr)
    return tw_report(context, TW_ERROR_MEMORY, "%s: could not allocate %lld bytes of workspace", model->name, (long long)bytes);
  return TW_OK;
}

int32_t check_buffers(const tw_model *model, const tw_context *context, const void *const *inputs, void *const *outputs,
                      const uint8_t *constants) {
  if ((inputs == nullptr && model->input_count > 0) || (outputs == nullptr && model->output_count > 0))
    return tw_report(context, TW_ERROR_ARGUMENT, "%s: the list of inputs or outputs is null", model->name);
  if (constants == nullptr && model->constants_bytes > 0)
    return tw_report(context, TW_ERROR_ARGUMENT, "%s: its constants (%lld bytes) are not given; open them first", model->name,
                     (long long)model->constants_bytes);
  if (((uintptr_t)constants & 63) != 0)
    return tw_report(context, TW_ERROR_ARGUMENT, "%s: the constants must be aligned to 64 bytes", model->name);
  return TW_OK;
}

int32_t run_team(running_team *team, const tw_context *context, int32_t threads) {
  if (threads == 1) {
    run_thread(team, 0, 1);
  } else if (context != nullptr && context->parallel != nullptr) {
    int32_t status = context->parallel(context->user, threads, run_thread, team);
    if (status != TW_OK)
      return tw_report(context, status, "%s: the host's parallel function failed with %d", team->model->name, status);
  } else {
    int32_t status = tw_pool_run(threads, run_thread, team);
    if (status == TW_ERROR_MEMORY)
      return tw_report(context, status, "%s: could not start %d threads", team->model->name, threads);
    if (status != TW_OK)
      return tw_report(context, status, "%s: cannot run on %d threads: at most %d, and not from inside a running model",
                       team->model->name, threads, TW_POOL_MAXIMUM);
  }
  return team->head.status == TW_OK ? TW_OK : report_failure(team, context);
}

int64_t count_output_dims(const tw_model *model) {
  int64_t count = 0;
  for (int32_t index = 0; index < model->output_count; index++) count += model->outputs[index].rank;
  return count;
}

}  // namespace

extern "C" int32_t tw_report(const tw_context *context, int32_t code, const char *format, ...) {
  if (context != nullptr && context->error != nullptr && context->error_capacity > 0) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(context->error, context->error_capacity, format, arguments);
    va_end(arguments);
  }
  return code;
}

extern "C" int32_t tw_report_failure(const tw_model *model, const tw_context *context, int32_t code, int32_t site_number, int64_t found_size,
                                     int64_t expected_size) {
  const char *site = site_number >= 0 && site_number < model->site_count ? model->sites[site_number] : model->name;
  long long found = (long long)found_size, expected = (long long)expected_size;
  switch (code) {
    case TW_ERROR_INDEX:
      return tw_report(context, code, "%s: index %lld is out of bounds for axis with size %lld", site, found, expected);
    case TW_ERROR_INDEX_UNSIGNED:
      return tw_report(context, TW_ERROR_INDEX, "%s: index %llu is out of bounds for axis with size %lld", site,
                       (unsigned long long)found, expected);
    case TW_ERROR_SHAPE:
      return tw_report(context, code, "%s: found size %lld, expected %lld", site, found, expected);
    case TW_ERROR_MEMORY:
      return tw_report(context, code, "%s: could not allocate %lld bytes", site, found);
    case TW_ERROR_ASSERT:
      return tw_report(context, code, "%s: check failed: found %lld, expected %lld", site, found, expected);
    default:
      return tw_report(context, code, "%s: failed with status %d: found %lld, expected %lld", site, code, found, expected);
  }
}

extern "C" int32_t tw_dtype_bytes(int32_t dtype) {
  static const int8_t bytes[] = {1, 1, 2, 4, 8, 1, 2, 4, 8, 2, 2, 4, 8, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  return dtype >= 0 && dtype < (int32_t)sizeof bytes ? bytes[dtype] : 0;
}

extern "C" int32_t tw_refuse_cpu(const tw_model *model, const tw_context *context, const char *feature) {
  const char *wanted = context == nullptr ? nullptr : context->variant;
  if (first_variant(model) == model || wanted != nullptr)
    return tw_report(context, TW_ERROR_CPU, "%s: compiled for a CPU with %s, which this one lacks; compile it for this CPU", model->name,
                     feature);
  char names[400];
  name_variants(model, model, names, sizeof names);
  return tw_report(context, TW_ERROR_CPU, "%s: compiled for %s; the last of these needs a CPU with %s, which this one lacks; "
                   "compile it for this CPU", model->name, names, feature);
}

extern "C" int32_t tw_choose_variant(const tw_model **place, const tw_context *context) {
  const tw_model *model = *place;
  if (model == nullptr) return tw_report(context, TW_ERROR_ARGUMENT, "the model is null");
  if (context != nullptr && context->abi_version != TW_ABI_VERSION)
    return tw_report(context, TW_ERROR_VERSION, "the context has ABI version %u, expected %d: set context.abi_version to TW_ABI_VERSION",
                     context->abi_version, TW_ABI_VERSION);
  if (model->abi_version != TW_ABI_VERSION)
    return tw_report(context, TW_ERROR_VERSION, "the artifact has ABI version %u, this runtime expects %d; compile the model again",
                     model->abi_version, TW_ABI_VERSION);
  const char *wanted = context == nullptr ? nullptr : context->variant;
  const tw_model *refused = nullptr; /* the last one looked at: none asks for less */
  for (const tw_model *variant = first_variant(model); variant != nullptr; variant = variant->next_variant) {
    if (wanted != nullptr && strcmp(variant->target, wanted) != 0) continue;
    refused = variant;
    if (!runs_here(variant)) continue;
    *place = variant;
    return TW_OK;
  }
  char text[400] = "";
  if (refused == nullptr) {
    name_variants(model, nullptr, text, sizeof text);
    return tw_report(context, TW_ERROR_ARGUMENT, "%s: found the variant '%s' in the context, expected one of: %s", model->name, wanted, text);
  }
  tw_missing_feature(refused->features, text, sizeof text);
  return tw_refuse_cpu(refused, context, text);
}

extern "C" const tw_model *tw_describe_model(const tw_model *model) {
  if (tw_choose_variant(&model, nullptr) == TW_OK) return model;
  while (model->next_variant != nullptr) model = model->next_variant;
  return model;
}

extern "C" int32_t tw_plan_model(const tw_model *model, const tw_context *context, const int64_t *shapes, int64_t *output_shapes,
                                 int64_t *workspace_bytes) {
  int32_t status = tw_choose_variant(&model, context);
  if (status != TW_OK) return status;
  int64_t no_shape = 0, bytes = 0, where = -1, detail[3] = {0, 0, TW_EXACTLY};
  if (shapes == nullptr) shapes = &no_shape; /* allowed when all inputs are scalars */
  if (output_shapes == nullptr) output_shapes = (int64_t *)__builtin_alloca(sizeof(int64_t) * (size_t)(count_output_dims(model) + 1));
  status = model->plan(shapes, output_shapes, &bytes, &where, detail);
  int64_t own = model->thread_bytes == 0 ? 0 : count_threads(context) * model->thread_bytes;
  if (bytes >= 0) bytes = bytes > INT64_MAX - own ? -1 : bytes + own;
  if (workspace_bytes != nullptr) *workspace_bytes = bytes;
  if (status == TW_OK && bytes < 0) return tw_report(context, TW_ERROR_MEMORY, "%s: the workspace for these sizes overflows", model->name);
  if (status == TW_OK) return status;
  if (status != TW_ERROR_SHAPE) return tw_report(context, status, "%s: planning failed with status %d", model->name, status);
  char dim[256];
  name_dim(model, where, dim, sizeof dim);
  static const char *const relations[] = {"", "at least ", "at most ", "a multiple of "};
  const char *relation = detail[2] >= TW_EXACTLY && detail[2] <= TW_MULTIPLE_OF ? relations[detail[2]] : "";
  return tw_report(context, status, "%s: %s: found size %lld, expected %s%lld", model->name, dim, (long long)detail[0], relation,
                   (long long)detail[1]);
}

extern "C" int32_t tw_run_planned(const tw_model *model, const tw_context *context, const void *const *inputs, void *const *outputs,
                                  const int64_t *shapes, const uint8_t *constants, void *workspace, int64_t workspace_bytes,
                                  int64_t *nanoseconds) {
  return tw_run_timed(model, context, inputs, outputs, shapes, constants, workspace, workspace_bytes, nanoseconds, nullptr);
}

extern "C" int32_t tw_run_timed(const tw_model *model, const tw_context *context, const void *const *inputs, void *const *outputs,
                                const int64_t *shapes, const uint8_t *constants, void *workspace, int64_t workspace_bytes,
                                int64_t *nanoseconds, tw_timeline *timeline) {
  if (constants == nullptr) constants = model->constants;
  int32_t status = check_buffers(model, context, inputs, outputs, constants);
  if (status != TW_OK) return status;
  int32_t threads = count_threads(context);
  if (timeline != nullptr && timeline->threads != threads)
    return tw_report(context, TW_ERROR_ARGUMENT, "%s: the timeline is for %d threads, the call runs on %d", model->name, timeline->threads, threads);
  void *own = nullptr;
  if (workspace == nullptr && workspace_bytes > 0) {
    status = allocate_workspace(model, context, workspace_bytes, &own);
    if (status != TW_OK) return status;
    workspace = own;
  }
  running_team team;
  memset(&team, 0, sizeof team);
  team.head.barrier = timeline == nullptr ? team_barrier : timed_barrier;
  team.head.fail = team_fail;
  team.head.mark = nanoseconds == nullptr ? nullptr : team_mark;
  team.head.threads = threads;
  team.barrier.threads = threads;
  team.barrier.spin = threads == 1 ? 0 : tw_pool_spin(threads);
  team.model = model;
  team.inputs = inputs;
  team.outputs = outputs;
  team.shapes = shapes;
  team.constants = constants;
  team.workspace = (uint8_t *)workspace + (model->thread_bytes == 0 ? 0 : threads * model->thread_bytes);
  team.nanoseconds = nanoseconds;
  team.timeline = timeline;
  team.last_mark = nanoseconds == nullptr ? 0 : now();
  status = run_team(&team, context, threads);
  if (own != nullptr) release(context, own);
  return status;
}

extern "C" int32_t tw_profile_model(const tw_model *model, const tw_context *context, const void *const *inputs, void *const *outputs,
                                    const int64_t *shapes, const uint8_t *constants, void *workspace, int64_t *nanoseconds) {
  int64_t bytes = 0, no_shape = 0;
  int32_t status = tw_choose_variant(&model, context);
  if (status == TW_OK) status = tw_plan_model(model, context, shapes, nullptr, &bytes);
  if (status != TW_OK) return status;
  return tw_run_planned(model, context, inputs, outputs, shapes == nullptr ? &no_shape : shapes, constants, workspace, bytes, nanoseconds);
}

extern "C" int32_t tw_run_model(const tw_model *model, const tw_context *context, const void *const *inputs, void *const *outputs,
                                const int64_t *shapes, const uint8_t *constants, void *workspace) {
  return tw_profile_model(model, context, inputs, outputs, shapes, constants, workspace, nullptr);
}

extern "C" int32_t tw_open_model(const tw_model *model, const tw_context *context, const char *path, tw_constants *constants) {
  if (constants == nullptr) return tw_report(context, TW_ERROR_ARGUMENT, "the place for the constants is null");
  memset(constants, 0, sizeof *constants);
  int32_t status = tw_choose_variant(&model, context);
  if (status != TW_OK) return status;
  if (model->constants != nullptr || model->constants_bytes == 0) {
    constants->data = model->constants;
    constants->bytes = model->constants_bytes;
    return TW_OK;
  }
  char beside[6000];
  if (path == nullptr) {
    if (tw_constants_default_path(model, beside, sizeof beside) != 0)
      return tw_report(context, TW_ERROR_FILE, "%s: cannot find the folder of the library; give the path of the .weights file", model->name);
    path = beside;
  }
  char error[1024];
  status = tw_constants_open(path, model->constants_bytes, model->constants_digest, 1, constants, error, sizeof error);
  return status == TW_OK ? status : tw_report(context, status, "%s", error);
}

extern "C" void tw_close_model(const tw_model *, tw_constants *constants) { tw_constants_close(constants); }
