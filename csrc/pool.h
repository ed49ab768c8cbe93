/* The process-wide team of threads, and the barrier that its members meet at.
 *
 * One pool a process, started by the first call that needs it and grown to the largest number of threads asked for. The
 * caller's thread is member 0. Workers spin for a short while after a call, then sleep in the kernel.
 *
 * Guarantees: all members of one call run concurrently (they meet at barriers), so calls of several threads are served
 * one after the other; a call from inside a member is refused, since it could only wait for itself. After fork the child
 * has no workers and starts its own on first use: the pool's memory is wiped by the kernel at fork, so even a fork in the
 * middle of somebody else's call leaves the child a clean one. Workers block all signals. When the library is unloaded
 * or the process exits, idle workers are stopped and joined.
 *
 * Owns its workers and their memory; safe from any thread. Needs the C library only (no libstdc++, no thread-local
 * storage, no startup files), because it is part of ahead-of-time artifacts.
 */
#ifndef TILEWRIGHT_POOL_H
#define TILEWRIGHT_POOL_H
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define TW_POOL_MAXIMUM 256 /* threads of one call */

typedef void (*tw_pool_body)(void *argument, int32_t thread, int32_t threads);

/* Runs body(argument, thread, threads) on every thread 0..threads-1 at once and returns when all are done. TW_OK; or
 * TW_ERROR_MEMORY (a worker could not be started) or TW_ERROR_ARGUMENT (too many threads, or called from a member), and
 * then body was not called at all. */
int32_t tw_pool_run(int32_t threads, tw_pool_body body, void *argument);

/* tw_available_threads(), remembered; at most TW_POOL_MAXIMUM. */
int32_t tw_pool_default_threads(void);

/* Stops and joins the workers if no call is in progress (the next call starts them anew). Returns 1 when it did. */
int32_t tw_pool_stop(void);

/* A barrier for `threads` threads. Zero-initialise, then set `threads` and `spin`. It carries a value: what the last
 * thread to arrive read from *value is what every thread gets back, so all of them decide alike. */
typedef struct tw_barrier {
  uint32_t phase;      /* counts completed meetings; the sense that waiters watch */
  int32_t arrived;
  int32_t sleepers;
  int32_t agreed;
  int32_t threads;
  int32_t spin;        /* tries before sleeping; 0 when there are more threads than CPUs */
} tw_barrier;
int32_t tw_barrier_wait(tw_barrier *barrier, const int32_t *value);

/* How long members should spin when `threads` of them run here. */
int32_t tw_pool_spin(int32_t threads);

#ifdef __cplusplus
}
#endif
#endif
