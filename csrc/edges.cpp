/* Which edges of control flow the runtime ran: part of builds with -fsanitize-coverage=trace-pc (`make runtime-coverage`), and of no other.
 *
 * The compiler calls __sanitizer_cov_trace_pc at each basic block; an edge is the block of that call after the block of the one
 * before it on the same thread, both as offsets into this library, so the same in every process. Edges are kept exactly, in a hash
 * table and in the order in which they were first seen; once the table is nearly full, new ones are dropped. Safe from any
 * thread, takes no lock, allocates nothing. Read from Python by fuzz/edges.py.
 */
#include <stdint.h>

#define TW_EXPORT extern "C" __attribute__((visibility("default")))
#if defined(__clang__)
#define TW_NOT_COUNTED __attribute__((no_sanitize("coverage")))
#else
#define TW_NOT_COUNTED __attribute__((no_sanitize_coverage))
#endif

extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start; /* the linker's: where this library begins */

namespace {

const uint32_t slots = 1 << 17, most_edges = slots / 4 * 3;
uint64_t table[slots]; /* 0: free */
uint64_t order[most_edges];
uint32_t edges_seen;
bool recording;
thread_local uint32_t previous;

TW_NOT_COUNTED void note(uint64_t edge) {
  uint64_t place = (edge * UINT64_C(0x9e3779b97f4a7c15)) >> 47;
  for (;; place = (place + 1) % slots) {
    uint64_t found = __atomic_load_n(&table[place], __ATOMIC_RELAXED);
    if (found == edge) return;
    if (found != 0) continue;
    if (__atomic_load_n(&edges_seen, __ATOMIC_RELAXED) >= most_edges - 1024) return; /* fewer threads than that note at once */
    if (__atomic_compare_exchange_n(&table[place], &found, edge, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) break;
    if (found == edge) return;
  }
  uint32_t number = __atomic_fetch_add(&edges_seen, 1, __ATOMIC_RELAXED);
  __atomic_store_n(&order[number], edge, __ATOMIC_RELEASE);
}

}  // namespace

TW_EXPORT TW_NOT_COUNTED void __sanitizer_cov_trace_pc() {
  if (!__atomic_load_n(&recording, __ATOMIC_RELAXED)) return;
  uint32_t here = (uint32_t)((const char *)__builtin_return_address(0) - &__ehdr_start);
  note((uint64_t)previous << 32 | here);
  previous = here;
}

TW_EXPORT TW_NOT_COUNTED void tw_edges_record(int32_t on) { __atomic_store_n(&recording, on != 0, __ATOMIC_RELAXED); }

TW_EXPORT TW_NOT_COUNTED void tw_edges_note(uint64_t edge) {
  if (edge != 0) note(edge);
}

TW_EXPORT TW_NOT_COUNTED uint32_t tw_edges_count() { return __atomic_load_n(&edges_seen, __ATOMIC_RELAXED); }

/* Copies edges first to last - 1 in their order; the caller has asked for the count, so waits for none but those in the making. */
TW_EXPORT TW_NOT_COUNTED void tw_edges_copy(uint32_t first, uint32_t last, uint64_t *edges) {
  for (uint32_t number = first; number < last && number < most_edges; number++)
    while ((edges[number - first] = __atomic_load_n(&order[number], __ATOMIC_ACQUIRE)) == 0) {
    }
}
