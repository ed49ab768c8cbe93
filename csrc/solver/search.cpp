/* The search; see search.h for what it relies on. */
#include "search.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>

namespace packing {

namespace {

const int64_t unbounded = std::numeric_limits<int64_t>::max();

size_t at(int32_t index) { return static_cast<size_t>(index); }

}  // namespace

search::search(const part &whole, int64_t capacity, budget &left) : whole_(whole), capacity_(capacity), left_(left) {
  const size_t members = whole.members.size(), sections = whole.totals.size();
  twins_.resize(members), next_.resize(members + 1), previous_.resize(members + 1);
  placed_.resize(members), offsets_.resize(members), lowest_.resize(members);
  lowest_open_.resize(sections);
}

verdict search::run(const std::vector<int32_t> &ranks, int64_t nodes) {
  const auto count = static_cast<int32_t>(whole_.members.size());
  nodes_ = nodes;
  ranks_ = ranks;
  link_twins();
  for (int32_t i = 0; i <= count; i++) next_[at(i)] = i == count ? 0 : i + 1, previous_[at(i)] = i == 0 ? count : i - 1;
  std::fill(placed_.begin(), placed_.end(), 0);
  floors_.assign(whole_.totals.size(), 0);
  failures_.assign(whole_.totals.size(), 0);
  open_bytes_ = whole_.totals;
  trail_.clear(), candidates_.clear();
  return solve(0, count - 1, 0, -1);
}

/* Like members can change places: in which order they are placed is decided once. */
void search::link_twins() {
  std::vector<int32_t> order(whole_.members.size());
  std::iota(order.begin(), order.end(), 0);
  auto kind = [&](int32_t i) {
    const member &each = whole_.members[at(i)];
    return std::make_tuple(each.first, each.last, each.size, each.alignment);
  };
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return std::make_pair(kind(a), ranks_[at(a)]) < std::make_pair(kind(b), ranks_[at(b)]);
  });
  for (size_t k = 0; k < order.size(); k++) twins_[at(order[k])] = k > 0 && kind(order[k]) == kind(order[k - 1]) ? order[k - 1] : -1;
}

/* Solves what is open between two members, one range after the other. Members before `rank` are too late for the offset `level`. */
verdict search::solve(int32_t head, int32_t tail, int64_t level, int32_t rank) {
  range open{head, head, whole_.members[at(head)].first, whole_.members[at(head)].last};
  for (int32_t i = head;; i = next_[at(i)]) {
    const member &each = whole_.members[at(i)];
    if (each.first > open.last) {
      const int32_t following = i;
      if (verdict found = solve_range(open, level, rank); found != verdict::packed) return found;
      open = {following, following, each.first, each.last};
    }
    open.tail = i;
    open.last = std::max(open.last, each.last);
    if (i == tail) return solve_range(open, level, rank);
  }
}

verdict search::solve_range(const range &open, int64_t level, int32_t rank) {
  if (nodes_-- <= 0 || !left_.spend()) return verdict::stopped;
  const size_t mark = trail_.size(), chosen = candidates_.size();
  trail_.insert(trail_.end(), floors_.begin() + open.first, floors_.begin() + open.last + 1);
  verdict found = verdict::impossible;
  if (raise_floors(open, level)) {
    add_candidates(open, level, rank);
    for (size_t k = chosen; k < candidates_.size() && found == verdict::impossible; k++) found = place(open, candidates_[k]);
  }
  candidates_.resize(chosen);
  std::copy(trail_.begin() + static_cast<std::ptrdiff_t>(mark), trail_.end(), floors_.begin() + open.first);
  trail_.resize(mark);
  return found;
}

/* Nothing begins below the level, nor below the lowest place of the open members of its section; until nothing changes.
 * False once what is open does not fit any more. */
bool search::raise_floors(const range &open, int64_t level) {
  for (int32_t s = open.first; s <= open.last; s++) floors_[at(s)] = std::max(floors_[at(s)], level);
  for (bool changed = true; changed;) {
    if (!fits(open)) return false;
    changed = false;
    std::fill(lowest_open_.begin() + open.first, lowest_open_.begin() + open.last + 1, unbounded);
    for (int32_t i = open.head;; i = next_[at(i)]) {
      const member &each = whole_.members[at(i)];
      int64_t lowest = 0;
      for (int32_t s = each.first; s <= each.last; s++) lowest = std::max(lowest, floors_[at(s)]);
      if (each.alignment > 1) lowest = round_up(lowest, each.alignment);
      lowest_[at(i)] = lowest;
      for (int32_t s = each.first; s <= each.last; s++) lowest_open_[at(s)] = std::min(lowest_open_[at(s)], lowest);
      if (i == open.tail) break;
    }
    for (int32_t s = open.first; s <= open.last; s++) {
      if (open_bytes_[at(s)] == 0 || lowest_open_[at(s)] <= floors_[at(s)]) continue;
      floors_[at(s)] = lowest_open_[at(s)];
      changed = true;
    }
  }
  return true;
}

/* Whether what is open can still fit into each section; a section that it does not fit into is counted. */
bool search::fits(const range &open) {
  for (int32_t s = open.first; s <= open.last; s++) {
    if (open_bytes_[at(s)] > 0 && floors_[at(s)] + open_bytes_[at(s)] > capacity_) {
      failures_[at(s)]++;
      return false;
    }
  }
  return true;
}

/* Members that may be next, the lowest first. What would raise the floor of a section too far is none, which counts as a failure. */
void search::add_candidates(const range &open, int64_t level, int32_t rank) {
  int64_t highest = unbounded, top = unbounded;
  int32_t tightest = open.first;
  for (int32_t s = open.first; s <= open.last; s++) {
    if (open_bytes_[at(s)] > 0 && capacity_ - open_bytes_[at(s)] < highest) highest = capacity_ - open_bytes_[at(s)], tightest = s;
  }
  for (int32_t i = open.head;; i = next_[at(i)]) {
    top = std::min(top, lowest_[at(i)] + whole_.members[at(i)].size);
    if (i == open.tail) break;
  }
  const auto begin = static_cast<std::ptrdiff_t>(candidates_.size());
  bool refused = false;
  for (int32_t i = open.head;; i = next_[at(i)]) {
    const int64_t lowest = lowest_[at(i)];
    const int32_t own = ranks_[at(i)], twin = twins_[at(i)];
    if (lowest < top && !(lowest == level && own < rank) && (twin < 0 || placed_[at(twin)])) {
      if (lowest <= highest) candidates_.push_back({lowest, own, i});
      else refused = true;
    }
    if (i == open.tail) break;
  }
  if (refused) failures_[at(tightest)]++;
  std::sort(candidates_.begin() + begin, candidates_.end(), [](const candidate &a, const candidate &b) {
    return std::tie(a.offset, a.rank) < std::tie(b.offset, b.rank);
  });
}

/* Places one member and solves the rest of the range. Its floors are as before afterwards. */
verdict search::place(const range &open, const candidate &choice) {
  const int32_t chosen = choice.member;
  const member &each = whole_.members[at(chosen)];
  offsets_[at(chosen)] = choice.offset;
  if (open.head == open.tail) return choice.offset + each.size <= capacity_ ? verdict::packed : verdict::impossible;
  const size_t mark = trail_.size();
  trail_.insert(trail_.end(), floors_.begin() + each.first, floors_.begin() + each.last + 1);
  for (int32_t s = each.first; s <= each.last; s++) {
    floors_[at(s)] = choice.offset + each.size;
    open_bytes_[at(s)] -= each.size;
  }
  const int32_t before = previous_[at(chosen)], after = next_[at(chosen)];
  next_[at(before)] = after, previous_[at(after)] = before;
  placed_[at(chosen)] = 1;
  const verdict found = solve(open.head == chosen ? after : open.head, open.tail == chosen ? before : open.tail, choice.offset,
                              choice.rank);
  placed_[at(chosen)] = 0;
  next_[at(before)] = chosen, previous_[at(after)] = chosen;
  for (int32_t s = each.first; s <= each.last; s++) open_bytes_[at(s)] += each.size;
  std::copy(trail_.begin() + static_cast<std::ptrdiff_t>(mark), trail_.end(), floors_.begin() + each.first);
  trail_.resize(mark);
  return found;
}

}  // namespace packing
