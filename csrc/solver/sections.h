/* Time as the solver sees it: sections instead of moments, and parts that have nothing to do with each other.
 *
 * A section is a set of items alive together that no other such set contains. Items overlap exactly where they share a section, and
 * one is in all sections from its first to its last, so nothing else of time matters.
 */
#ifndef TILEWRIGHT_SOLVER_SECTIONS_H
#define TILEWRIGHT_SOLVER_SECTIONS_H

#include <cstdint>
#include <vector>

#include "packing.h"

namespace packing {

struct member {
  int32_t first, last; /* sections, both included */
  int64_t size, alignment;
  int64_t lifetime;
  int32_t item; /* its place in the caller's list */
};

/* Items that no moment divides; members are in order of their first section. */
struct part {
  std::vector<member> members;
  std::vector<int64_t> totals; /* bytes alive in each section */
};

std::vector<part> parts_of(const std::vector<item> &items);

}  // namespace packing

#endif
