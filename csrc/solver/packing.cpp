/* Exact packing of whole problems: parts one after the other, each searched in several orders with growing numbers of nodes.
 *
 * A search that goes wrong early stays wrong for long, so it is given few nodes and begun anew in another order of ranks, following
 * Luby's sequence (Luby, Sinclair and Zuckerman, Optimal Speedup of Las Vegas Algorithms, 1993). Every other order learns: items alive
 * in sections that failed often come first. Any of the searches that ends by itself is a proof. What is drawn at random comes from
 * a generator with a fixed seed.
 */
#include "packing.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "search.h"
#include "sections.h"

namespace packing {

namespace {

const int64_t nodes_of_a_try = 300;
const int64_t nodes_between_looks = 256; /* at the clock, and for an interrupt */
const double kept_of_failures = 0.8;     /* from one try to the next */
const size_t most_members = 5000;        /* of a part: the search goes as deep */

/* 1 1 2 1 1 2 4 1 1 2 ...; `position` counts from 1. */
int64_t luby(int64_t position) {
  int64_t power = 1;
  while (power - 1 < position) power *= 2;
  return power - 1 == position ? power / 2 : luby(position - power / 2 + 1);
}

/* A number in [0, 1) from a state that it moves on (Knuth's constants for 64 bits). */
double draw(uint64_t &state) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(state >> 11) / 9007199254740992.0;
}

/* Orders for the tries of one part. */
class ranking {
 public:
  explicit ranking(const part &whole) : whole_(whole), weights_(whole.totals.size(), 0.0) {
    for (const member &each : whole.members) longest_ = std::max(longest_, static_cast<double>(each.lifetime));
    largest_ = static_cast<double>(*std::max_element(whole.totals.begin(), whole.totals.end()));
  }

  std::vector<int32_t> ranks(int64_t number) {
    std::vector<double> keys;
    for (const member &each : whole_.members) keys.push_back(key(each, number));
    std::vector<int32_t> order(keys.size()), ranks(keys.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return keys[static_cast<size_t>(a)] > keys[static_cast<size_t>(b)];
    });
    for (size_t k = 0; k < order.size(); k++) ranks[static_cast<size_t>(order[k])] = static_cast<int32_t>(k);
    return ranks;
  }

  void learn(const std::vector<int64_t> &failures) {
    const int64_t most = std::max<int64_t>(1, *std::max_element(failures.begin(), failures.end()));
    for (size_t s = 0; s < weights_.size(); s++) {
      weights_[s] = kept_of_failures * weights_[s] + static_cast<double>(failures[s]) / static_cast<double>(most);
    }
  }

 private:
  /* Members with a larger key come first: in every other try those of sections that failed, in one of several ways to weigh them, as
   * which is best differs between problems; else the fullest section, then the lifetime, and chance. */
  double key(const member &each, int64_t number) {
    double sum = 0, most = 0, fullest = 0;
    for (int32_t s = each.first; s <= each.last; s++) {
      const auto section = static_cast<size_t>(s);
      sum += weights_[section];
      most = std::max(most, weights_[section]);
      fullest = std::max(fullest, static_cast<double>(whole_.totals[section]) / largest_);
    }
    const double plain = fullest + 1e-3 * static_cast<double>(each.lifetime) / longest_;
    if (number % 2 == 1) return plain * (1 + 0.5 * draw(state_));
    switch (number / 2 % 4) {
      case 0: return sum * 1e3 + plain;
      case 1: return most * (1 + 0.5 * draw(state_)) * 1e3 + plain;
      case 2: return sum * (1 + 0.5 * draw(state_)) * 1e3 + plain;
      default: return (sum + most) * (1 + 0.2 * draw(state_)) * 1e3 + plain;
    }
  }

  const part &whole_;
  std::vector<double> weights_; /* by section */
  double longest_ = 1, largest_ = 1;
  uint64_t state_ = 1;
};

verdict fit_part(const part &whole, int64_t capacity, budget &left, std::vector<int64_t> &offsets) {
  if (*std::max_element(whole.totals.begin(), whole.totals.end()) > capacity) return verdict::impossible;
  if (whole.members.size() > most_members) return verdict::stopped;
  search tree(whole, capacity, left);
  ranking orders(whole);
  for (int64_t number = 0;; number++) {
    const int64_t before = left.spent();
    const verdict found = tree.run(orders.ranks(number), nodes_of_a_try * luby(number / 2 + 1));
    if (found == verdict::packed) {
      for (size_t i = 0; i < whole.members.size(); i++) offsets[static_cast<size_t>(whole.members[i].item)] = tree.offsets()[i];
    }
    if (found != verdict::stopped || left.exhausted() || left.spent() == before) return found;
    if (number % 2 == 0) orders.learn(tree.failures());
  }
}

}  // namespace

budget::budget(int64_t nodes, double seconds, std::function<bool()> interrupted)
    : nodes_(nodes), timed_(seconds < 1e9), interrupted_(std::move(interrupted)) {
  if (timed_) {
    end_ = std::chrono::steady_clock::now() +
           std::chrono::duration_cast<std::chrono::steady_clock::duration>(std::chrono::duration<double>(seconds));
  }
}

bool budget::spend() {
  if (stopped_ || spent_ >= nodes_) {
    stopped_ = true;
    return false;
  }
  if (++spent_ % nodes_between_looks == 0) {
    stopped_ = (timed_ && std::chrono::steady_clock::now() >= end_) || (interrupted_ && interrupted_());
  }
  return !stopped_;
}

answer fit(const std::vector<item> &items, int64_t capacity, budget &left) {
  const int64_t before = left.spent();
  answer result{verdict::packed, fit_greedily(items), 0};
  if (height(items, result.offsets) <= capacity) return result;
  /* an impossible part is an answer, even where another one was given up */
  for (const part &whole : parts_of(items)) {
    const verdict found = fit_part(whole, capacity, left, result.offsets);
    if (found != verdict::packed) result.found = found;
    if (found == verdict::impossible) break;
  }
  result.nodes = left.spent() - before;
  if (result.found != verdict::packed) result.offsets.clear();
  return result;
}

int64_t lower_bound(const std::vector<item> &items) {
  int64_t most = 0;
  for (const part &whole : parts_of(items)) most = std::max(most, *std::max_element(whole.totals.begin(), whole.totals.end()));
  return most;
}

int64_t height(const std::vector<item> &items, const std::vector<int64_t> &offsets) {
  int64_t most = 0;
  for (size_t i = 0; i < items.size(); i++) most = std::max(most, offsets[i] + items[i].size);
  return most;
}

}  // namespace packing
