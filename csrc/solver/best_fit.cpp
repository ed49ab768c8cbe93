/* Greedy packings, for an answer at once.
 *
 * Best fit: items in some order, each into the smallest gap that takes it between those placed before that are alive with it, or
 * above them all (Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020). Several orders are tried and
 * the lowest packing is taken, the earlier order where two are equal: the first is by size alone.
 */
#include <algorithm>
#include <limits>
#include <numeric>
#include <tuple>

#include "packing.h"

namespace packing {

namespace {

using order = std::vector<size_t>;

class gaps {
 public:
  explicit gaps(const std::vector<item> &items) : items_(items) {}

  std::vector<int64_t> pack(const order &turns) {
    std::vector<int64_t> offsets(items_.size(), 0);
    placed_.clear();
    for (size_t turn : turns) {
      offsets[turn] = best_place(items_[turn], offsets);
      placed_.push_back(turn);
    }
    return offsets;
  }

 private:
  int64_t best_place(const item &wanted, const std::vector<int64_t> &offsets) {
    busy_.clear();
    for (size_t other : placed_) {
      const item &each = items_[other];
      if (each.lower < wanted.upper && wanted.lower < each.upper) busy_.emplace_back(offsets[other], offsets[other] + each.size);
    }
    std::sort(busy_.begin(), busy_.end());
    int64_t best = -1, best_room = std::numeric_limits<int64_t>::max(), end = 0;
    for (const auto &[start, stop] : busy_) {
      const int64_t place = round_up(end, wanted.alignment), room = start - end;
      if (place + wanted.size <= start && room < best_room) best = place, best_room = room;
      end = std::max(end, stop);
    }
    return best < 0 ? round_up(end, wanted.alignment) : best;
  }

  const std::vector<item> &items_;
  std::vector<size_t> placed_;
  std::vector<std::pair<int64_t, int64_t>> busy_;
};

std::vector<order> orders_of(const std::vector<item> &items) {
  order given(items.size());
  std::iota(given.begin(), given.end(), size_t{0});
  auto sorted = [&](auto key) {
    order turns = given;
    std::stable_sort(turns.begin(), turns.end(), [&](size_t a, size_t b) { return key(items[a]) < key(items[b]); });
    return turns;
  };
  auto lifetime = [](const item &each) { return static_cast<double>(each.upper) - static_cast<double>(each.lower); };
  return {
      sorted([](const item &each) { return std::make_tuple(-each.size, each.lower); }),
      sorted([&](const item &each) { return std::make_tuple(-lifetime(each) * static_cast<double>(each.size), each.lower); }),
      sorted([&](const item &each) { return std::make_tuple(-lifetime(each), -each.size); }),
      sorted([](const item &each) { return std::make_tuple(each.lower, -each.size); }),
      sorted([](const item &each) { return std::make_tuple(-each.upper, -each.size); }),
  };
}

}  // namespace

std::vector<int64_t> fit_greedily(const std::vector<item> &items) {
  gaps packer(items);
  const int64_t bound = lower_bound(items);
  std::vector<int64_t> best;
  int64_t least = std::numeric_limits<int64_t>::max();
  for (const order &turns : orders_of(items)) {
    std::vector<int64_t> offsets = packer.pack(turns);
    const int64_t taken = height(items, offsets);
    if (taken < least) best = std::move(offsets), least = taken;
    if (least <= bound) break;
  }
  return best;
}

}  // namespace packing
