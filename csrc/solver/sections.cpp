/* Sections and parts; see sections.h. */
#include "sections.h"

#include <algorithm>
#include <numeric>
#include <tuple>

namespace packing {

namespace {

/* The beginnings after which something ends before anything else begins: there a set of items is as large as it gets. */
std::vector<int64_t> section_moments(const std::vector<item> &items) {
  std::vector<int64_t> begins, ends, moments;
  for (const item &each : items) begins.push_back(each.lower), ends.push_back(each.upper);
  std::sort(begins.begin(), begins.end());
  begins.erase(std::unique(begins.begin(), begins.end()), begins.end());
  std::sort(ends.begin(), ends.end());
  for (size_t k = 0; k < begins.size(); k++) {
    auto next_end = std::upper_bound(ends.begin(), ends.end(), begins[k]);
    if (k + 1 == begins.size() || *next_end <= begins[k + 1]) moments.push_back(begins[k]);
  }
  return moments;
}

std::vector<member> members_of(const std::vector<item> &items) {
  const std::vector<int64_t> moments = section_moments(items);
  auto section_from = [&](int64_t moment) {
    return static_cast<int32_t>(std::lower_bound(moments.begin(), moments.end(), moment) - moments.begin());
  };
  std::vector<member> members;
  for (size_t i = 0; i < items.size(); i++) {
    const item &each = items[i];
    members.push_back({section_from(each.lower), section_from(each.upper) - 1, each.size, each.alignment,
                       each.upper - each.lower, static_cast<int32_t>(i)});
  }
  std::sort(members.begin(), members.end(), [](const member &a, const member &b) {
    return std::tie(a.first, a.last, a.size, a.item) < std::tie(b.first, b.last, b.size, b.item);
  });
  return members;
}

void close(part &open) {
  int32_t first = open.members.front().first, last = first;
  for (const member &each : open.members) last = std::max(last, each.last);
  open.totals.assign(static_cast<size_t>(last - first + 1), 0);
  for (member &each : open.members) {
    each.first -= first, each.last -= first;
    for (int32_t s = each.first; s <= each.last; s++) open.totals[static_cast<size_t>(s)] += each.size;
  }
}

}  // namespace

std::vector<part> parts_of(const std::vector<item> &items) {
  std::vector<part> parts;
  int32_t reached = -1;
  for (const member &each : members_of(items)) {
    if (each.first > reached) {
      if (!parts.empty()) close(parts.back());
      parts.emplace_back();
    }
    parts.back().members.push_back(each);
    reached = std::max(reached, each.last);
  }
  if (!parts.empty()) close(parts.back());
  return parts;
}

}  // namespace packing
