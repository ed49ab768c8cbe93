/* How long a word of memory takes from one core to the other and back: two pinned threads pass a counter.
 *
 * Assumes Linux and two cores that this process may use. Guarantees no system call inside the measured loop.
 * tw_pingpong gives nanoseconds for one round trip (the best of some batches), or a negative number when a thread could not be
 * started or pinned.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

enum { BATCHES = 20, ROUNDS = 20000 };

typedef struct {
  _Alignas(128) atomic_uint word;
  _Alignas(128) int core;
  atomic_int failed;
} shared_state;

static int pin(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  return pthread_setaffinity_np(pthread_self(), sizeof set, &set);
}

static void *answer(void *argument) {
  shared_state *state = argument;
  if (pin(state->core) != 0) {
    atomic_store(&state->failed, 1);
  }
  for (unsigned round = 0; round < BATCHES * ROUNDS; round++) {
    while (atomic_load_explicit(&state->word, memory_order_acquire) != 2 * round + 1) {
    }
    atomic_store_explicit(&state->word, 2 * round + 2, memory_order_release);
  }
  return NULL;
}

static double seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double tw_pingpong(int first_core, int second_core) {
  shared_state state = {.core = second_core};
  cpu_set_t before;
  pthread_t other;
  if (pthread_getaffinity_np(pthread_self(), sizeof before, &before) != 0 || pin(first_core) != 0) {
    return -1;
  }
  if (pthread_create(&other, NULL, answer, &state) != 0) {
    pthread_setaffinity_np(pthread_self(), sizeof before, &before);
    return -1;
  }
  double best = 1e9;
  unsigned round = 0;
  for (int batch = 0; batch < BATCHES; batch++) {
    double begin = seconds();
    for (int turn = 0; turn < ROUNDS; turn++, round++) {
      atomic_store_explicit(&state.word, 2 * round + 1, memory_order_release);
      while (atomic_load_explicit(&state.word, memory_order_acquire) != 2 * round + 2) {
      }
    }
    double taken = (seconds() - begin) / ROUNDS;
    best = taken < best ? taken : best;
  }
  pthread_join(other, NULL);
  pthread_setaffinity_np(pthread_self(), sizeof before, &before);
  return atomic_load(&state.failed) ? -1 : best * 1e9;
}
