/* Exact search for a packing of one part: depth first, from the bottom up.
 *
 * Follows the ideas of MiniMalloc (Moffitt, MiniMalloc: A Lightweight Memory Allocator for Hardware-Accelerated Machine Learning,
 * ASPLOS 2023). Of all packings only canonical ones are looked at: those with the least sum of offsets, whose items are placed in
 * order of offset. So each item lies at the height of what is below it, and everything placed later begins no lower. At each node:
 * - the floor of a section is the least at which anything can still begin there; it rises to the lowest of its open items;
 * - a section whose floor and open bytes exceed the capacity ends the branch;
 * - an item is not placed above where another one would fit below it (spatial dominance);
 * - equal offsets are placed in order of rank, and so are items that are alike;
 * - open items that share no section fall into ranges that are solved apart.
 * Beyond the paper: failures are counted by section, and a search begun anew (see packing.cpp) prefers items of sections that failed.
 */
#ifndef TILEWRIGHT_SOLVER_SEARCH_H
#define TILEWRIGHT_SOLVER_SEARCH_H

#include <cstdint>
#include <vector>

#include "packing.h"
#include "sections.h"

namespace packing {

class search {
 public:
  /* Refers to both for as long as it lives. */
  search(const part &whole, int64_t capacity, budget &left);

  /* Tries items in order of rank (0 first) where their offsets are equal; enters at most `nodes` nodes. */
  verdict run(const std::vector<int32_t> &ranks, int64_t nodes);

  const std::vector<int64_t> &offsets() const { return offsets_; }       /* of the members; valid once run has found `packed` */
  const std::vector<int64_t> &failures() const { return failures_; }     /* by section, since the beginning of the last run */

 private:
  /* Open members from `head` to `tail` along next_, and the sections that they reach. */
  struct range {
    int32_t head, tail, first, last;
  };
  struct candidate {
    int64_t offset;
    int32_t rank, member;
  };

  verdict solve(int32_t head, int32_t tail, int64_t level, int32_t rank);
  verdict solve_range(const range &open, int64_t level, int32_t rank);
  verdict place(const range &open, const candidate &choice);
  bool raise_floors(const range &open, int64_t level);
  bool fits(const range &open);
  void add_candidates(const range &open, int64_t level, int32_t rank);
  void link_twins();

  const part &whole_;
  const int64_t capacity_;
  budget &left_;
  int64_t nodes_ = 0;
  std::vector<int32_t> ranks_, twins_;          /* by member; the twin is the like one that is placed before, or -1 */
  std::vector<int32_t> next_, previous_;        /* open members, in order of their first section; one ring with an end */
  std::vector<char> placed_;
  std::vector<int64_t> offsets_, lowest_;       /* by member: where it lies, and where it could at least */
  std::vector<int64_t> floors_, open_bytes_, lowest_open_, failures_; /* by section */
  std::vector<int64_t> trail_;                  /* floors to go back to */
  std::vector<candidate> candidates_;           /* of all nodes on the way down */
};

}  // namespace packing

#endif
