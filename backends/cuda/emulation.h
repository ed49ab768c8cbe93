// The C face of an emulated module: a shared library made of a kernel's source, the host bodies of the device header and
// emulation*.cpp. Ownership: nothing passed in is kept beyond the call. Thread safety: one launch of a library at a time; a second
// caller waits for it.

#pragma once

#ifdef __cplusplus
extern "C" {
#endif

// Memory that a kernel may touch, as allocated; `writable` is 0 for what it may only read.
typedef struct tw_emulated_range {
  unsigned long long begin;
  unsigned long long bytes;
  int writable;
} tw_emulated_range;

enum { TW_EMULATED_DONE = 0, TW_EMULATED_FAULT = 1, TW_EMULATED_BAD_LAUNCH = 2 };
enum { TW_EMULATED_PARAMETERS = 128 };

// A row of the table that is generated behind a source; the last one has no name.
typedef struct tw_emulated_kernel {
  const char *name;
  int parameter_count;
  const unsigned *parameter_bytes;
  void (*start)(void **parameters);
} tw_emulated_kernel;

// 1 where the library has the kernel; then its number of parameters and the bytes of each (room for TW_EMULATED_PARAMETERS).
__attribute__((visibility("default"))) int tw_emulated_find(const char *name, int *parameter_count, unsigned *parameter_bytes);

// Runs a grid block by block. `parameters[i]` points to the value of parameter i, as for cuLaunchKernel. With `ranges` given a library
// with checks reports each access to global memory outside of them. A fault is described in `message`: its first line says
// what, where and in which thread; a second line "at 0x.. 0x.." gives places in the library, innermost first.
__attribute__((visibility("default"))) int tw_emulated_launch(const char *name, const unsigned grid[3], const unsigned block[3], unsigned long long shared_bytes,
                       void **parameters, const tw_emulated_range *ranges, unsigned long long range_count, char *message,
                       unsigned long long message_bytes);

#ifdef __cplusplus
}
#endif
