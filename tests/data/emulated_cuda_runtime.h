// As much of CUDA's runtime interface as the `main` of a standalone source calls, over the emulation of its kernels: device memory is host
// memory, of which kernels may touch what was allocated.

#pragma once

#include "emulation.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <vector>

// Of the device header, whose host body declares the C library by itself.
struct tw_failure { int code; int site; long long found; long long expected; };
struct tw_float16;
struct tw_bfloat16;

typedef int cudaError_t;
enum { cudaSuccess, cudaErrorInvalidValue };
enum { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };

static std::vector<tw_emulated_range> allocated;
static unsigned long long allowed_shared = 49152;  // of the kernel that is launched next
static cudaError_t last_error = cudaSuccess;

static const char *cudaGetErrorString(cudaError_t) { return "invalid value"; }
static cudaError_t cudaMalloc(void **memory, size_t bytes) {
  *memory = aligned_alloc(256, (bytes + 255) / 256 * 256);
  allocated.push_back({(unsigned long long)*memory, bytes, 1});
  return cudaSuccess;
}
static cudaError_t cudaMemset(void *memory, int value, size_t bytes) { return memset(memory, value, bytes) ? cudaSuccess : cudaErrorInvalidValue; }
static cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, int) { return memcpy(to, from, bytes) ? cudaSuccess : cudaErrorInvalidValue; }
static cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
static cudaError_t cudaGetLastError() { return last_error; }
static cudaError_t cudaFuncSetAttribute(const char *, int, int bytes) {
  allowed_shared = bytes;
  return bytes <= 232448 ? cudaSuccess : cudaErrorInvalidValue;
}

// Sizes are passed as the long long that they are in every kernel.
template <typename T> static void *parameter(T &value) { return &value; }
template <typename T> using Passed = typename std::conditional<std::is_pointer<T>::value, T, long long>::type;

template <typename... T> static void launch(const char *name, long long blocks, unsigned threads, unsigned long long shared, T... arguments) {
  std::tuple<Passed<T>...> values(arguments...);
  void *places[sizeof...(T) + 1] = {};
  int count = 0;
  std::apply([&](auto &...value) { ((places[count++] = parameter(value)), ...); }, values);
  int expected = 0;
  unsigned sizes[TW_EMULATED_PARAMETERS];
  char message[4096];
  const unsigned grid[3] = {(unsigned)blocks, 1, 1}, block[3] = {threads, 1, 1};
  const bool fits = tw_emulated_find(name, &expected, sizes) && expected == count && shared <= allowed_shared;
  const bool done = fits && tw_emulated_launch(name, grid, block, shared, places, allocated.data(), allocated.size(), message, sizeof(message)) ==
                                TW_EMULATED_DONE;
  if (fits && !done) printf("%s\n", message);
  last_error = done ? cudaSuccess : cudaErrorInvalidValue;
  allowed_shared = 49152;
}
