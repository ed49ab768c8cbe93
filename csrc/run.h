/* Planning, running and testing a compiled model: what every host calls, whether it holds the model in memory or links it.
 *
 * Guarantees: nothing here changes the model; every failure comes back as a negative tw_status with a message in
 * context->error (when the host gave room for one); no exception and no signal. The model's ABI version and CPU features
 * are checked before any of its code runs; of several variants, one that the CPU can run is chosen.
 * Ownership: inputs, outputs, constants, shapes and a workspace that was passed stay the caller's; a null workspace is
 * allocated and released inside the call. Thread safety: any number of calls at once, each with its own context error
 * buffer, outputs and workspace. A null context means: default threads, C library memory, no message.
 * C library only (no libstdc++): this is part of ahead-of-time artifacts.
 *
 * ---------------------------------------------------------------------------------------------------------------------
 * Contract for the code generator. An ahead-of-time object with the public prefix <name> (a C identifier) defines:
 *
 *   hidden constant  tw_model <name>_model
 *   and seven default-visibility functions, each of which only puts &<name>_model in front and tail-calls the runtime:
 *
 *   const tw_model *<name>_describe(void)                                   -> tw_describe_model(&<name>_model)
 *   int32_t <name>_plan(const tw_context *context, const int64_t *shapes, int64_t *output_shapes,
 *                       int64_t *workspace_bytes)                           -> tw_plan_model(&<name>_model, ...)
 *   int32_t <name>_run(const tw_context *context, const void *const *inputs, void *const *outputs, const int64_t *shapes,
 *                      const uint8_t *constants, void *workspace)           -> tw_run_model(&<name>_model, ...)
 *   int32_t <name>_open(const tw_context *context, const char *path, tw_constants *constants)
 *                                                                           -> tw_open_model(&<name>_model, ...)
 *   void <name>_close(tw_constants *constants)                              -> tw_close_model(&<name>_model, ...)
 *   int32_t <name>_selftest(const tw_context *context, const uint8_t *constants)
 *                                                                           -> tw_selftest_model(&<name>_model, ...)
 *   int32_t <name>_profile(const tw_context *context, const void *const *inputs, void *const *outputs,
 *                          const int64_t *shapes, const uint8_t *constants, void *workspace, int64_t *nanoseconds)
 *                                                                           -> tw_profile_model(&<name>_model, ...)
 *
 * The tw_*_model functions are declared as hidden externals of the object (default visibility works too). The in-process
 * loader resolves them as well, so the same object bytes serve both uses. The object may otherwise only refer to memcpy,
 * memmove and memset, has no writable data except .data.rel.ro, no thread-local storage and no constructors.
 * In-process-only objects need no wrappers: just the symbol `tw_model` (or whatever name the loader is told).
 * ---------------------------------------------------------------------------------------------------------------------
 */
#ifndef TILEWRIGHT_RUN_H
#define TILEWRIGHT_RUN_H
#include "abi.h"
#ifdef __cplusplus
extern "C" {
#endif

/* Replaces any of a model's variants by the one to use (abi.h: tw_model). TW_OK, TW_ERROR_VERSION, TW_ERROR_CPU where this CPU
 * lacks a feature, or TW_ERROR_ARGUMENT for null and for a context that names no variant of it. A function of the CPU and of
 * context->variant alone, so all calls agree. */
int32_t tw_choose_variant(const tw_model **model, const tw_context *context);

/* The variant that calls use unless their context names another; where this CPU can run none, the one that asks for least. */
const tw_model *tw_describe_model(const tw_model *model);

/* Leaves the message that this CPU lacks `feature`, without which it can run neither the model nor any variant of it that
 * asks for more; returns TW_ERROR_CPU. */
int32_t tw_refuse_cpu(const tw_model *model, const tw_context *context, const char *feature);

/* Checks `shapes`, writes every output's dims in order and the bytes of workspace that a run with them and with the
 * context's threads needs. Either result may be null. */
int32_t tw_plan_model(const tw_model *model, const tw_context *context, const int64_t *shapes, int64_t *output_shapes,
                      int64_t *workspace_bytes);

/* Runs the model once. `constants`: the segment (64-byte aligned), or null when it is embedded or empty. `workspace`:
 * 64-byte aligned and as large as planned, or null. */
int32_t tw_run_model(const tw_model *model, const tw_context *context, const void *const *inputs, void *const *outputs,
                     const int64_t *shapes, const uint8_t *constants, void *workspace);

/* The same, and adds to nanoseconds[k] the time between the ends of kernel k-1 and k as thread 0 saw them. The caller
 * zeroes the kernel_count entries. */
int32_t tw_profile_model(const tw_model *model, const tw_context *context, const void *const *inputs, void *const *outputs,
                         const int64_t *shapes, const uint8_t *constants, void *workspace, int64_t *nanoseconds);

/* What the threads of a call did when. A thread's events lie in order from events[thread * capacity] on; counts[thread]
 * says how many there were: what found no room is counted, not kept. `what` is the number of the kernel that has ended
 * (thread 0 alone), or one of tw_event_kind. The caller zeroes counts and owners; all belongs to it. */
enum tw_event_kind { TW_EVENT_START = -1, TW_EVENT_ARRIVE = -2, TW_EVENT_LEAVE = -3 }; /* of the program; at, from a barrier */
typedef struct tw_event {
  int64_t nanoseconds; /* CLOCK_MONOTONIC */
  int64_t what;
} tw_event;
typedef struct tw_timeline {
  tw_event *events;
  int64_t capacity;    /* events of one thread */
  int64_t *counts;
  uint64_t *owners;    /* which thread of the system each member is */
  int32_t threads;     /* entries of counts and owners: those of the call */
} tw_timeline;

/* As tw_run_planned, and writes down what happened. */
int32_t tw_run_timed(const tw_model *model, const tw_context *context, const void *const *inputs, void *const *outputs,
                     const int64_t *shapes, const uint8_t *constants, void *workspace, int64_t workspace_bytes,
                     int64_t *nanoseconds, tw_timeline *timeline);

/* For hosts that have just planned: runs this very variant without planning again. `workspace_bytes` is what the plan said. */
int32_t tw_run_planned(const tw_model *model, const tw_context *context, const void *const *inputs, void *const *outputs,
                       const int64_t *shapes, const uint8_t *constants, void *workspace, int64_t workspace_bytes,
                       int64_t *nanoseconds);

/* Gives the constants: those embedded, or the sidecar file mapped and verified. path null: "<model name>.weights" in the
 * folder of the library or program that holds the model. */
int32_t tw_open_model(const tw_model *model, const tw_context *context, const char *path, tw_constants *constants);
void tw_close_model(const tw_model *model, tw_constants *constants);

/* Runs the recorded golden call (abi.h) and compares. TW_OK also when the model carries none, which the message says. */
int32_t tw_selftest_model(const tw_model *model, const tw_context *context, const uint8_t *constants);

/* Leaves a message where the context has room for one; returns the code. */
__attribute__((format(printf, 3, 4))) int32_t tw_report(const tw_context *context, int32_t code, const char *format, ...);

/* Leaves the message of a failure that generated code recorded (tw_team.fail); returns what callers get for the code. */
int32_t tw_report_failure(const tw_model *model, const tw_context *context, int32_t code, int32_t site, int64_t found, int64_t expected);

/* Bytes of one element of a dtype code, 0 for an unknown code. */
int32_t tw_dtype_bytes(int32_t dtype);

#ifdef __cplusplus
}
#endif
#endif
