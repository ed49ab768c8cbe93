/* What stands for a compiled kernel in test_cuda.cpp: a library with the C face of backends/cuda/emulation.h. Its kernels: "twice",
 * y[i] = 2 * x[i] for i < n, which records a failure where x[i] is negative; "crash", which fails as a kernel. */
#include <stdio.h>
#include <string.h>

#include "emulation.h"

struct failure {
  int code, site;
  long long found, expected;
};

static const unsigned sizes[] = {8, 8, 8, 8};

int tw_emulated_find(const char *name, int *parameter_count, unsigned *parameter_bytes) {
  *parameter_count = 4;
  memcpy(parameter_bytes, sizes, sizeof sizes);
  return strcmp(name, "twice") == 0 || strcmp(name, "crash") == 0;
}

int tw_emulated_launch(const char *name, const unsigned grid[3], const unsigned block[3], unsigned long long shared_bytes, void **parameters,
                       const tw_emulated_range *ranges, unsigned long long range_count, char *message, unsigned long long message_bytes) {
  const float *x = *(const float **)parameters[0];
  float *y = *(float **)parameters[1];
  struct failure *failure = *(struct failure **)parameters[2];
  const long long n = *(long long *)parameters[3];
  (void)shared_bytes, (void)ranges, (void)range_count;
  if (strcmp(name, "crash") == 0) {
    snprintf(message, message_bytes, "kernel crash: as it was told");
    return TW_EMULATED_FAULT;
  }
  for (long long i = 0; i < n && i < (long long)grid[0] * block[0]; i++) {
    if (x[i] < 0 && failure->code == 0) {
      failure->site = 0;
      failure->found = i;
      failure->expected = n;
      failure->code = -1;
    }
    y[i] = 2 * x[i];
  }
  return TW_EMULATED_DONE;
}
