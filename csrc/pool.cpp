/* Thread pool and barrier on futexes; see pool.h for what they promise.
 *
 * The whole state is zero-initialised memory of its own that the kernel wipes in a forked child (MADV_WIPEONFORK), so
 * "all zero" is the state "never started". Every worker has its own line with a ticket: the caller writes the job, then
 * raises the tickets of those it wants. A worker that is not wanted therefore never looks at the job, and the job can be
 * rewritten as soon as the wanted ones have reported.
 */
#include "pool.h"

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "abi.h"
#include "machine.h"

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

namespace {

const int32_t spin_tries = 4000; /* pauses, some 50 to 150 microseconds: longer than the gap between calls in a loop */

struct alignas(64) worker_slot {
  uint32_t ticket; /* raised once a job; the worker's futex */
  uint32_t sleeping;
  int32_t number; /* of the thread in its team: 1 .. */
  pthread_t handle;
};

struct pool_state {
  int32_t lock; /* 0 free, 1 held, 2 held and waited for */
  int32_t process;
  int32_t default_threads;
  int32_t stopping;
  int32_t started; /* workers running */
  pthread_t owner; /* who holds the lock, to recognise calls from inside */
  alignas(64) tw_pool_body body;
  void *argument;
  int32_t threads;
  int32_t spin;
  alignas(64) int32_t pending; /* workers that have not reported; the caller's futex */
  int32_t caller_sleeping;
  worker_slot workers[TW_POOL_MAXIMUM];
};

pool_state *process_pool = nullptr; /* set once, then constant; the content is wiped at fork */
int32_t wiped_at_fork = 0;

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

template <typename T>
inline T load(const T *place) {
  return __atomic_load_n(place, __ATOMIC_ACQUIRE);
}

void futex_wait(const void *word, uint32_t value) {
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void futex_wake(const void *word, int count) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
}

bool try_lock(int32_t *lock) {
  int32_t expected = 0;
  return __atomic_compare_exchange_n(lock, &expected, 1, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

void wait_lock(int32_t *lock) {
  while (__atomic_exchange_n(lock, 2, __ATOMIC_ACQUIRE) != 0) futex_wait(lock, 2);
}

void unlock(int32_t *lock) {
  if (__atomic_exchange_n(lock, 0, __ATOMIC_RELEASE) == 2) futex_wake(lock, 1);
}

/* The pool, created on first use. Null when there is no memory for it. */
pool_state *get_pool() {
  pool_state *pool = load(&process_pool);
  if (pool == nullptr) {
    void *memory = mmap(nullptr, sizeof(pool_state), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    int32_t wiped = madvise(memory, sizeof(pool_state), MADV_WIPEONFORK) == 0;
    __atomic_store_n(&wiped_at_fork, wiped, __ATOMIC_RELAXED);
    pool_state *expected = nullptr;
    if (__atomic_compare_exchange_n(&process_pool, &expected, (pool_state *)memory, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
      pool = (pool_state *)memory;
    } else {
      munmap(memory, sizeof(pool_state));
      pool = expected;
    }
  }
  if (!__atomic_load_n(&wiped_at_fork, __ATOMIC_RELAXED)) { /* kernels before 4.14: look for a fork on every call */
    int32_t process = (int32_t)getpid(), before = __atomic_load_n(&pool->process, __ATOMIC_RELAXED);
    if (before != 0 && before != process) memset((void *)pool, 0, sizeof *pool);
    __atomic_store_n(&pool->process, process, __ATOMIC_RELAXED);
  }
  return pool;
}

/* Waits until *word differs from `value`: spins, then lets others run, then sleeps with *sleeping raised so that the
 * writer knows to wake it. The raise and the second look are ordered against the writer's store and its look. */
void wait_change(const uint32_t *word, uint32_t value, uint32_t *sleeping, int32_t spin) {
  for (int32_t tries = 0; tries < spin; tries++) {
    if (load(word) != value) return;
    pause_cpu();
  }
  for (int32_t tries = 0; tries < 4; tries++) {
    if (load(word) != value) return;
    sched_yield();
  }
  __atomic_store_n(sleeping, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == value) futex_wait(word, value);
  __atomic_store_n(sleeping, 0, __ATOMIC_SEQ_CST);
}

void report_done(pool_state *pool) {
  if (__atomic_sub_fetch(&pool->pending, 1, __ATOMIC_SEQ_CST) == 0 && __atomic_load_n(&pool->caller_sleeping, __ATOMIC_SEQ_CST))
    futex_wake(&pool->pending, 1);
}

void *run_worker(void *argument) {
  worker_slot *slot = (worker_slot *)argument;
  pool_state *pool = load(&process_pool);
  uint32_t seen = 0;
  int32_t spin = spin_tries;
  for (;;) {
    wait_change(&slot->ticket, seen, &slot->sleeping, spin);
    seen = load(&slot->ticket);
    if (load(&pool->stopping)) return nullptr;
    spin = pool->spin;
    pool->body(pool->argument, slot->number, pool->threads);
    report_done(pool);
  }
}

/* Starts workers until there are `wanted`; called with the lock held. */
bool start_workers(pool_state *pool, int32_t wanted) {
  if (pool->started >= wanted) return true;
  sigset_t all, before;
  sigfillset(&all);
  if (pthread_sigmask(SIG_SETMASK, &all, &before) != 0) return false;
  int32_t started = pool->started;
  for (; started < wanted; started++) {
    worker_slot *slot = &pool->workers[started];
    slot->ticket = 0;
    slot->sleeping = 0;
    slot->number = started + 1;
    pthread_t handle;
    if (pthread_create(&handle, nullptr, run_worker, slot) != 0) break;
    __atomic_store_n(&slot->handle, handle, __ATOMIC_RELAXED);
    __atomic_store_n(&pool->started, started + 1, __ATOMIC_RELEASE);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  return started >= wanted;
}

bool is_member(pool_state *pool, pthread_t self) {
  if (__atomic_load_n(&pool->owner, __ATOMIC_RELAXED) == self) return true;
  int32_t started = load(&pool->started);
  for (int32_t index = 0; index < started; index++)
    if (__atomic_load_n(&pool->workers[index].handle, __ATOMIC_RELAXED) == self) return true;
  return false;
}

void raise_ticket(worker_slot *slot) {
  __atomic_fetch_add(&slot->ticket, 1, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&slot->sleeping, __ATOMIC_SEQ_CST)) futex_wake(&slot->ticket, 1);
}

void join_job(pool_state *pool) {
  for (int32_t tries = 0; tries < pool->spin; tries++) {
    if (load(&pool->pending) == 0) return;
    pause_cpu();
  }
  __atomic_store_n(&pool->caller_sleeping, 1, __ATOMIC_SEQ_CST);
  for (;;) {
    int32_t pending = __atomic_load_n(&pool->pending, __ATOMIC_SEQ_CST);
    if (pending == 0) break;
    futex_wait(&pool->pending, (uint32_t)pending); /* a report in between changes the word and so returns at once */
  }
  __atomic_store_n(&pool->caller_sleeping, 0, __ATOMIC_SEQ_CST);
}

/* Called by dlclose and exit: a worker must not outlive the code it runs. A call in progress means that the process is
 * exiting under it; then there is nothing to wait for. */
__attribute__((destructor)) void stop_at_unload() {
  if (load(&process_pool) != nullptr) tw_pool_stop();
}

}  // namespace

extern "C" int32_t tw_pool_run(int32_t threads, tw_pool_body body, void *argument) {
  if (threads <= 1) {
    body(argument, 0, 1);
    return TW_OK;
  }
  if (threads > TW_POOL_MAXIMUM) return TW_ERROR_ARGUMENT;
  pool_state *pool = get_pool();
  if (pool == nullptr) return TW_ERROR_MEMORY;
  pthread_t self = pthread_self();
  if (!try_lock(&pool->lock)) {
    if (is_member(pool, self)) return TW_ERROR_ARGUMENT;
    wait_lock(&pool->lock);
  }
  if (!start_workers(pool, threads - 1)) {
    unlock(&pool->lock);
    return TW_ERROR_MEMORY;
  }
  __atomic_store_n(&pool->owner, self, __ATOMIC_RELAXED);
  pool->body = body;
  pool->argument = argument;
  pool->threads = threads;
  pool->spin = tw_pool_spin(threads);
  __atomic_store_n(&pool->pending, threads - 1, __ATOMIC_RELAXED);
  for (int32_t index = 0; index < threads - 1; index++) raise_ticket(&pool->workers[index]);
  body(argument, 0, threads);
  join_job(pool);
  __atomic_store_n(&pool->owner, (pthread_t)0, __ATOMIC_RELAXED);
  unlock(&pool->lock);
  return TW_OK;
}

extern "C" int32_t tw_pool_default_threads(void) {
  pool_state *pool = get_pool();
  int32_t threads = pool == nullptr ? 0 : __atomic_load_n(&pool->default_threads, __ATOMIC_RELAXED);
  if (threads > 0) return threads;
  threads = tw_available_threads();
  if (threads > TW_POOL_MAXIMUM) threads = TW_POOL_MAXIMUM;
  if (pool != nullptr) __atomic_store_n(&pool->default_threads, threads, __ATOMIC_RELAXED);
  return threads;
}

extern "C" int32_t tw_pool_spin(int32_t threads) { return threads <= tw_pool_default_threads() ? spin_tries : 0; }

extern "C" int32_t tw_pool_stop(void) {
  pool_state *pool = get_pool();
  if (pool == nullptr || !try_lock(&pool->lock)) return 0;
  __atomic_store_n(&pool->stopping, 1, __ATOMIC_SEQ_CST);
  for (int32_t index = 0; index < pool->started; index++) raise_ticket(&pool->workers[index]);
  for (int32_t index = 0; index < pool->started; index++) pthread_join(pool->workers[index].handle, nullptr);
  __atomic_store_n(&pool->started, 0, __ATOMIC_RELEASE);
  __atomic_store_n(&pool->stopping, 0, __ATOMIC_SEQ_CST);
  unlock(&pool->lock);
  return 1;
}

extern "C" int32_t tw_barrier_wait(tw_barrier *barrier, const int32_t *value) {
  if (barrier->threads <= 1) return load(value);
  uint32_t phase = load(&barrier->phase);
  if (__atomic_add_fetch(&barrier->arrived, 1, __ATOMIC_ACQ_REL) == barrier->threads) {
    /* Nobody can arrive at the next meeting before phase changes, and nobody can finish it before having read agreed. */
    __atomic_store_n(&barrier->arrived, 0, __ATOMIC_RELAXED);
    int32_t agreed = load(value);
    barrier->agreed = agreed;
    __atomic_store_n(&barrier->phase, phase + 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&barrier->sleepers, __ATOMIC_SEQ_CST) != 0) futex_wake(&barrier->phase, barrier->threads);
    return agreed;
  }
  for (int32_t tries = 0; tries < barrier->spin; tries++) {
    if (load(&barrier->phase) != phase) return barrier->agreed;
    pause_cpu();
  }
  __atomic_add_fetch(&barrier->sleepers, 1, __ATOMIC_SEQ_CST);
  while (__atomic_load_n(&barrier->phase, __ATOMIC_SEQ_CST) == phase) futex_wait(&barrier->phase, phase);
  __atomic_sub_fetch(&barrier->sleepers, 1, __ATOMIC_SEQ_CST);
  return barrier->agreed;
}
