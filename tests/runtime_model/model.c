/* A model written by hand against csrc/abi.h, standing in for generated code in tests/test_runtime.py and csrc/tests.
 *
 *   double[batch, 4] = x * 2                            kernel 0, into the workspace
 *   y[i, :] = double[i, :] @ w[4, 3] + table[index[i]]  kernel 1; index is checked against 5 rows as NumPy does
 *   total = sum(index)                                  int64, a scalar
 *
 * w and table are constants (12 + 5 floats). batch is 0 .. 1000000. Compile with -DNAME=..., and optionally -DFEATURES=...,
 * -DVERSION_NUMBER=..., -DGOLDEN_BYTES=..., -DWORKSPACE_FACTOR=..., -DPREFIXED for the public wrappers.
 */
#include "run.h"

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)
#ifndef NAME
#define NAME tw
#endif
#ifndef FEATURES
#define FEATURES "sse2"
#endif
#ifndef VERSION_NUMBER
#define VERSION_NUMBER TW_ABI_VERSION
#endif
#ifndef GOLDEN_BYTES
#define GOLDEN_BYTES 0
#endif
#ifndef WORKSPACE_FACTOR
#define WORKSPACE_FACTOR 1
#endif
#define ROWS 5

static int32_t plan(const int64_t *shapes, int64_t *output_shapes, int64_t *workspace_bytes, int64_t *where, int64_t *detail) {
  int64_t batch = shapes[0];
  const int64_t expected[3] = {batch > 1000000 ? 1000000 : batch, 4, batch};
  for (int axis = 0; axis < 3; axis++)
    if (shapes[axis] != expected[axis]) {
      *where = axis;
      detail[0] = shapes[axis];
      detail[1] = expected[axis];
      return TW_ERROR_SHAPE;
    }
  output_shapes[0] = batch;
  output_shapes[1] = 3;
  *workspace_bytes = batch * 4 * 4 * (int64_t)WORKSPACE_FACTOR;
  return TW_OK;
}

static int32_t run_thread(tw_team *team, const void *const *inputs, void *const *outputs, const int64_t *shapes,
                          const uint8_t *constants, uint8_t *workspace, int64_t thread, int64_t threads) {
  const float *x = inputs[0], *w = (const float *)constants, *table = w + 12;
  const int64_t *index = inputs[1];
  float *y = outputs[0], *doubled = (float *)workspace;
  int64_t batch = shapes[0], first = batch * thread / threads, last = batch * (thread + 1) / threads;
  for (int64_t i = first * 4; i < last * 4; i++) doubled[i] = x[i] * 2;
  for (int64_t i = first; i < last; i++)
    if (index[i] < -ROWS || index[i] >= ROWS) {
      team->fail(team, TW_ERROR_INDEX, 0, index[i], ROWS);
      break;
    }
  int32_t status = team->barrier(team);
  if (status != TW_OK) return status;
  if (thread == 0 && team->mark) team->mark(team, 0);
  for (int64_t i = batch - 1 - first; i > batch - 1 - last; i--) /* rows that another thread doubled */
    for (int64_t j = 0; j < 3; j++) {
      float sum = table[index[i] < 0 ? index[i] + ROWS : index[i]];
      for (int64_t k = 0; k < 4; k++) sum += doubled[i * 4 + k] * w[k * 3 + j];
      y[i * 3 + j] = sum;
    }
  if (thread == 0) {
    int64_t total = 0;
    for (int64_t i = 0; i < batch; i++) total += index[i];
    *(int64_t *)outputs[1] = total;
  }
  status = team->barrier(team);
  if (thread == 0 && team->mark) team->mark(team, 1);
  return status;
}

static const int64_t x_dims[] = {-1, 4}, index_dims[] = {-1}, y_dims[] = {-1, 3};
static const char *const x_names[] = {"batch", 0}, *const index_names[] = {"batch"};
static const tw_tensor_descriptor input_list[] = {{"x", TW_FLOAT32, 2, x_dims, x_names}, {"index", TW_INT64, 1, index_dims, index_names}};
static const tw_tensor_descriptor output_list[] = {{"y", TW_FLOAT32, 2, y_dims, x_names}, {"total", TW_INT64, 0, 0, 0}};
static const char *const kernel_list[] = {"double", "dot_add"}, *const site_list[] = {"take: model.py:12"};

#ifdef PREFIXED
__attribute__((visibility("hidden")))
#endif
extern const tw_model instance __asm__(TEXT(NAME) "_model"); /* C cannot spell a constant that is named like the type */
const tw_model instance = {
    VERSION_NUMBER, 0, TEXT(NAME), "x86_64-linux", FEATURES, "0.1.0", 2, 2, input_list, output_list,
    128 + GOLDEN_BYTES, "feed", 0, 2, 1, kernel_list, site_list, plan, run_thread, -1, 128, GOLDEN_BYTES};

#ifdef PREFIXED
#define EXPORT __attribute__((visibility("default")))
#define MODEL (&instance)
EXPORT const tw_model *PASTE(NAME, _describe)(void) { return MODEL; }
EXPORT int32_t PASTE(NAME, _plan)(const tw_context *context, const int64_t *shapes, int64_t *output_shapes, int64_t *workspace_bytes) {
  return tw_plan_model(MODEL, context, shapes, output_shapes, workspace_bytes);
}
EXPORT int32_t PASTE(NAME, _run)(const tw_context *context, const void *const *inputs, void *const *outputs, const int64_t *shapes,
                                 const uint8_t *constants, void *workspace) {
  return tw_run_model(MODEL, context, inputs, outputs, shapes, constants, workspace);
}
EXPORT int32_t PASTE(NAME, _open)(const tw_context *context, const char *path, tw_constants *constants) {
  return tw_open_model(MODEL, context, path, constants);
}
EXPORT void PASTE(NAME, _close)(tw_constants *constants) { tw_close_model(MODEL, constants); }
EXPORT int32_t PASTE(NAME, _selftest)(const tw_context *context, const uint8_t *constants) {
  return tw_selftest_model(MODEL, context, constants);
}
EXPORT int32_t PASTE(NAME, _profile)(const tw_context *context, const void *const *inputs, void *const *outputs, const int64_t *shapes,
                                     const uint8_t *constants, void *workspace, int64_t *nanoseconds) {
  return tw_profile_model(MODEL, context, inputs, outputs, shapes, constants, workspace, nanoseconds);
}
#endif
