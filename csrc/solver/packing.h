/* Packing in two dimensions: items that are alive for a given time each get an address, and two that are alive together
 * share none.
 *
 * Assumes checked items: lower < upper, size and alignment 1 or more, and all sizes rounded up to the alignments together below
 * 2^61, so that no sum overflows. Guarantees: the same input and the same number of nodes give the same answer; `packed` comes
 * with offsets in [0, capacity - size] that are multiples of the alignments; `impossible` is a proof by exhaustion. Nothing here
 * keeps state between calls, so calls from several threads are safe. The C++ standard library only.
 */
#ifndef TILEWRIGHT_SOLVER_PACKING_H
#define TILEWRIGHT_SOLVER_PACKING_H

#include <chrono>
#include <cstdint>
#include <functional>
#include <vector>

namespace packing {

struct item {
  int64_t lower, upper; /* alive from the first moment until just before the second */
  int64_t size, alignment;
};

enum class verdict { packed, impossible, stopped };

struct answer {
  verdict found;
  std::vector<int64_t> offsets; /* of the items in their order; empty unless packed */
  int64_t nodes;                /* of the search tree, that were entered */
};

/* How long to search. `interrupted` is asked now and then. A node is a place in the search tree. */
class budget {
 public:
  budget(int64_t nodes, double seconds, std::function<bool()> interrupted);
  bool spend(); /* one node; false when there is none left */
  int64_t spent() const { return spent_; }
  bool exhausted() const { return stopped_; }

 private:
  int64_t nodes_, spent_ = 0;
  bool timed_, stopped_ = false;
  std::chrono::steady_clock::time_point end_;
  std::function<bool()> interrupted_;
};

/* Exact: offsets below the capacity, or that there are none, or neither within the budget. */
answer fit(const std::vector<item> &items, int64_t capacity, budget &left);

/* At once: the best of several greedy packings. Offsets of the items in their order. */
std::vector<int64_t> fit_greedily(const std::vector<item> &items);

/* The most bytes that are alive together: no packing needs less. */
int64_t lower_bound(const std::vector<item> &items);

/* What the offsets take. */
int64_t height(const std::vector<item> &items, const std::vector<int64_t> &offsets);

inline int64_t round_up(int64_t value, int64_t alignment) { return (value + alignment - 1) / alignment * alignment; }

}  // namespace packing

#endif
