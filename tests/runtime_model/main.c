/* A C program that uses two ahead-of-time models at once, as a user would: includes both headers, opens, plans, runs. */
#include "first.h"
#include "second.h"

#include <stdio.h>

static int use(const char *name, const tw_model *(*describe)(void),
               int32_t (*open)(const tw_context *, const char *, tw_constants *), void (*close)(tw_constants *),
               int32_t (*plan)(const tw_context *, const int64_t *, int64_t *, int64_t *),
               int32_t (*run)(const tw_context *, const void *const *, void *const *, const int64_t *, const uint8_t *, void *),
               int32_t (*selftest)(const tw_context *, const uint8_t *)) {
  char error[512] = "";
  tw_context context = {TW_ABI_VERSION};
  context.error = error;
  context.error_capacity = sizeof error;
  context.threads = 2;
  tw_constants constants;
  float x[8] = {1, 2, 3, 4, 5, 6, 7, 8}, y[6];
  int64_t index[2] = {0, 4}, total, shapes[3] = {2, 4, 2}, output_shapes[2], workspace;
  const void *inputs[2] = {x, index};
  void *outputs[2] = {y, &total};
  if (open(&context, NULL, &constants) || plan(&context, shapes, output_shapes, &workspace) ||
      run(&context, inputs, outputs, shapes, constants.data, NULL) || selftest(&context, constants.data)) {
    printf("%s: error: %s\n", name, error);
    return 1;
  }
  printf("%s %s: %g %g %g %g %g %g, total %d, workspace %d\n", name, describe()->name, y[0], y[1], y[2], y[3], y[4], y[5],
         (int)total, (int)workspace);
  index[1] = 9;
  int32_t status = run(&context, inputs, outputs, shapes, constants.data, NULL);
  printf("%s: %d %s\n", name, (int)status, error);
  close(&constants);
  return status != TW_ERROR_INDEX;
}

int main(void) {
  return use("a", first_describe, first_open, first_close, first_plan, first_run, first_selftest) +
         use("b", second_describe, second_open, second_close, second_plan, second_run, second_selftest);
}
