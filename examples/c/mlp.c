/* The smallest whole use of an ahead-of-time library: the model that examples/mlp.py compiles and saves.
 *
 *     python -m examples.mlp demo-output
 *     cc -std=c99 -I demo-output examples/c/mlp.c demo-output/mlp.so -pthread -Wl,-rpath,'$ORIGIN' -o demo-output/mlp
 *     demo-output/mlp 3
 *
 * Prints what the library says of itself, runs its self-test, then the model on BATCH rows of a fixed pattern, one line
 * of results a row, in the form that examples/mlp.py prints too.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mlp.h"

static void describe(const char *kind, const tw_tensor_descriptor *tensor) {
  printf("%s %s: dtype %d [", kind, tensor->name, (int)tensor->dtype);
  for (int32_t axis = 0; axis < tensor->rank; axis++) {
    const char *name = tensor->dim_names == NULL ? NULL : tensor->dim_names[axis];
    printf("%s", axis == 0 ? "" : ", ");
    if (tensor->dims[axis] < 0) {
      printf("%s", name == NULL ? "?" : name);
    } else {
      printf("%lld", (long long)tensor->dims[axis]);
    }
  }
  printf("]\n");
}

/* Runs the model with weights that are open; 0 on success. */
static int run(tw_context *context, const tw_constants *weights, int64_t batch) {
  const tw_model *model = mlp_describe();
  int64_t features = model->inputs[0].dims[1];
  int64_t shapes[2], result[2], workspace_bytes = 0;
  shapes[0] = batch;
  shapes[1] = features;
  int32_t status = mlp_plan(context, shapes, result, &workspace_bytes);
  if (status != TW_OK) {
    return status;
  }
  float *x = malloc((size_t)(batch * features) * sizeof *x);
  float *y = malloc((size_t)(result[0] * result[1]) * sizeof *y);
  status = TW_ERROR_MEMORY;
  if (x != NULL && y != NULL) {
    for (int64_t index = 0; index < batch * features; index++) {
      x[index] = (float)(index % 17) / 16.0f - 0.5f;
    }
    const void *inputs[1];
    void *outputs[1];
    inputs[0] = x;
    outputs[0] = y;
    status = mlp_run(context, inputs, outputs, shapes, weights->data, NULL); /* NULL: the library finds a workspace */
    for (int64_t row = 0; status == TW_OK && row < result[0]; row++) {
      for (int64_t column = 0; column < result[1]; column++) {
        printf("%s%.6f", column == 0 ? "" : " ", (double)y[row * result[1] + column]);
      }
      printf("\n");
    }
  }
  free(x);
  free(y);
  return status;
}

int main(int count, char **arguments) {
  long long batch = count > 1 ? atoll(arguments[1]) : 1;
  if (batch < 1 || batch > 65536) {
    fprintf(stderr, "usage: mlp [BATCH]   with BATCH from 1 to 65536\n");
    return 2;
  }
  const tw_model *model = mlp_describe();
  printf("%s for %s, made by tilewright %s\n", model->name, model->target, model->version);
  for (int32_t index = 0; index < model->input_count; index++) {
    describe("input", &model->inputs[index]);
  }
  for (int32_t index = 0; index < model->output_count; index++) {
    describe("output", &model->outputs[index]);
  }
  char message[512] = "";
  tw_context context;
  memset(&context, 0, sizeof context);
  context.abi_version = TW_ABI_VERSION;
  context.error = message;
  context.error_capacity = sizeof message;
  tw_constants weights;
  int32_t status = mlp_open(&context, NULL, &weights);
  if (status == TW_OK) {
    status = mlp_selftest(&context, weights.data);
    if (status == TW_OK) {
      status = run(&context, &weights, batch);
    }
    mlp_close(&weights);
  }
  if (status != TW_OK) {
    fprintf(stderr, "mlp: %s (%d)\n", message, (int)status);
  }
  return status != TW_OK;
}
