/* What this process may use of this machine: CPUs, memory, instruction set extensions.
 *
 * Assumes Linux; a missing /proc or /sys entry means "no limit known". Nothing is cached, nothing is owned, no state:
 * safe from any thread. Needs the C library only (no libstdc++), because it is part of ahead-of-time artifacts.
 */
#ifndef TILEWRIGHT_MACHINE_H
#define TILEWRIGHT_MACHINE_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

/* CPUs that this process may run on: its affinity mask, and at most the whole CPUs of its cgroup quota (1.5 -> 1: a
 * team that spins at barriers is throttled as one when it exceeds the quota). At least 1. */
int32_t tw_available_threads(void);

/* Bytes of memory that this process could still get: what the kernel calls available, and the cgroup's limit.
 * INT64_MAX when neither is known. */
int64_t tw_available_memory(void);

/* Checks a comma separated list of LLVM feature names (a leading '+' is allowed, entries with '-' are skipped).
 * Returns 0 when this CPU and its operating system support all; else 1, with the first one that is missing (or that
 * this runtime does not know) copied to `name`. */
int32_t tw_missing_feature(const char *features, char *name, size_t capacity);

#ifdef __cplusplus
}
#endif
#endif
