/* Sentence embeddings from C: the ahead-of-time library that `make demo` writes, called without Python.
 *
 *     minilm BATCH SEQUENCE token_ids.bin attention_mask.bin embeddings.bin
 *
 * The two inputs are files of BATCH * SEQUENCE int64, the result is a file of BATCH * 384 float32.
 *     cc -std=c99 -I demo-output examples/c/minilm.c demo-output/minilm.so -pthread -Wl,-rpath,'$ORIGIN' -o demo-output/minilm
 *
 * It shows the whole life of a model: open the weights (mapped, not read), ask how large the results and the workspace
 * will be, run with memory of our own, close. Everything here may be done by several threads at once, each with its own
 * results and workspace.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "minilm.h"

enum { ALIGNMENT = 64 };

/* Reads exactly `bytes` from a file; says what is wrong and gives 0 otherwise. */
static int read_exactly(const char *path, void *memory, size_t bytes) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) {
    perror(path);
    return 0;
  }
  size_t found = fread(memory, 1, bytes, file);
  int longer = fgetc(file) != EOF;
  fclose(file);
  if (found != bytes || longer) {
    fprintf(stderr, "%s: expected %zu bytes, found %s%zu\n", path, bytes, longer ? "more than " : "", found);
    return 0;
  }
  return 1;
}

static int write_exactly(const char *path, const void *memory, size_t bytes) {
  FILE *file = fopen(path, "wb");
  if (file == NULL || fwrite(memory, 1, bytes, file) != bytes || fclose(file) != 0) {
    perror(path);
    return 0;
  }
  return 1;
}

/* C99 has no aligned allocation: the aligned address inside a larger block, and the block to free. */
static void *aligned(size_t bytes, void **block) {
  *block = malloc(bytes + ALIGNMENT);
  return *block == NULL ? NULL : (char *)*block + ALIGNMENT - (size_t)*block % ALIGNMENT;
}

/* Runs the model on arrays that lie in memory; 0 on success, else the library's status with its message printed. */
static int embed(const int64_t *token_ids, const int64_t *attention_mask, int64_t batch, int64_t sequence,
                 const char *output_path) {
  char message[512] = "";
  tw_context context;
  memset(&context, 0, sizeof context); /* null and zero mean: the defaults */
  context.abi_version = TW_ABI_VERSION;
  context.error = message;
  context.error_capacity = sizeof message;

  tw_constants weights;
  int32_t status = minilm_open(&context, NULL, &weights); /* NULL: minilm.weights beside the library */
  if (status != TW_OK) {
    fprintf(stderr, "minilm_open: %s (%d)\n", message, (int)status);
    return status;
  }
  int64_t shapes[4], result[2], workspace_bytes = 0;
  shapes[0] = shapes[2] = batch;
  shapes[1] = shapes[3] = sequence;
  void *block = NULL, *workspace = NULL;
  float *embeddings = NULL;
  status = minilm_plan(&context, shapes, result, &workspace_bytes);
  if (status == TW_OK) {
    size_t bytes = (size_t)(result[0] * result[1]) * sizeof(float);
    embeddings = malloc(bytes);
    workspace = aligned((size_t)workspace_bytes, &block);
    if (embeddings == NULL || workspace == NULL) {
      status = TW_ERROR_MEMORY;
      snprintf(message, sizeof message, "no memory for %zu bytes of results and %lld of workspace", bytes,
               (long long)workspace_bytes);
    } else {
      const void *inputs[2];
      void *outputs[1];
      inputs[0] = token_ids;
      inputs[1] = attention_mask;
      outputs[0] = embeddings;
      status = minilm_run(&context, inputs, outputs, shapes, weights.data, workspace);
      if (status == TW_OK && !write_exactly(output_path, embeddings, bytes)) {
        status = TW_ERROR_FILE;
        snprintf(message, sizeof message, "the result was not written");
      }
    }
  }
  if (status == TW_OK) {
    printf("C: %lld x %lld embeddings, %.2f MB of weights mapped, %.2f MB of workspace\n", (long long)result[0],
           (long long)result[1], (double)weights.bytes / 1e6, (double)workspace_bytes / 1e6);
  } else {
    fprintf(stderr, "minilm: %s (%d)\n", message, (int)status);
  }
  free(embeddings);
  free(block);
  minilm_close(&weights);
  return status;
}

int main(int count, char **arguments) {
  long long batch = count == 6 ? atoll(arguments[1]) : 0;
  long long sequence = count == 6 ? atoll(arguments[2]) : 0;
  if (batch < 1 || batch > 65536 || sequence < 1 || sequence > 512) {
    fprintf(stderr, "usage: minilm BATCH SEQUENCE token_ids.bin attention_mask.bin embeddings.bin\n"
                    "       BATCH from 1 to 65536, SEQUENCE from 1 to 512\n");
    return 2;
  }
  size_t bytes = (size_t)batch * (size_t)sequence * sizeof(int64_t);
  int64_t *token_ids = malloc(bytes), *attention_mask = malloc(bytes);
  int failed = 1;
  if (token_ids == NULL || attention_mask == NULL) {
    fprintf(stderr, "minilm: no memory for two inputs of %zu bytes\n", bytes);
  } else if (read_exactly(arguments[3], token_ids, bytes) && read_exactly(arguments[4], attention_mask, bytes)) {
    failed = embed(token_ids, attention_mask, batch, sequence, arguments[5]) != TW_OK;
  }
  free(token_ids);
  free(attention_mask);
  return failed;
}
