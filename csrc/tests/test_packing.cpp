/* Tests of the packing solver that run under the sanitizers: known answers, proofs, limits, alignments, searches in threads.
 *
 * Exit code 0 when all hold. That answers are right is tested against brute force in tests/test_packing.py.
 */
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "../solver/packing.h"
#include "check.h"

namespace {

using packing::budget;
using packing::item;
using packing::verdict;

const int64_t plenty = int64_t(1) << 40;

/* Never more than 9 are alive, yet 9 are not enough. */
const std::vector<item> hard = {{5, 7, 4, 1}, {0, 3, 4, 1}, {2, 5, 3, 1}, {4, 6, 2, 1},
                                {5, 10, 1, 1}, {6, 8, 3, 1}, {2, 6, 2, 1}, {0, 1, 4, 1}};

bool valid(const std::vector<item> &items, const std::vector<int64_t> &offsets, int64_t capacity) {
  for (size_t i = 0; i < items.size(); i++) {
    if (offsets[i] < 0 || offsets[i] + items[i].size > capacity || offsets[i] % items[i].alignment != 0) return false;
    for (size_t j = 0; j < i; j++) {
      const bool together = items[i].lower < items[j].upper && items[j].lower < items[i].upper;
      if (together && offsets[i] < offsets[j] + items[j].size && offsets[j] < offsets[i] + items[i].size) return false;
    }
  }
  return true;
}

packing::answer solve(const std::vector<item> &items, int64_t capacity, int64_t nodes = plenty) {
  budget left(nodes, 1e9, {});
  return packing::fit(items, capacity, left);
}

void test_answers() {
  CHECK(packing::lower_bound(hard) == 9);
  CHECK(solve(hard, 9).found == verdict::impossible);
  CHECK(solve(hard, 8).found == verdict::impossible);
  const packing::answer found = solve(hard, 10);
  CHECK(found.found == verdict::packed && valid(hard, found.offsets, 10));
  CHECK(solve({}, 1).found == verdict::packed);
  CHECK(packing::lower_bound({}) == 0 && packing::fit_greedily({}).empty());
}

void test_random_problems() {
  uint64_t state = 1;
  auto draw = [&state](int64_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<int64_t>((state >> 33) % static_cast<uint64_t>(below));
  };
  for (int round = 0; round < 300; round++) {
    std::vector<item> items;
    for (int64_t count = 1 + draw(60); count > 0; count--) {
      const int64_t lower = draw(40) - 20;
      items.push_back({lower, lower + 1 + draw(9), 1 + draw(50), int64_t(1) << draw(4)});
    }
    const int64_t bound = packing::lower_bound(items);
    const std::vector<int64_t> offsets = packing::fit_greedily(items);
    const int64_t height = packing::height(items, offsets);
    CHECK(valid(items, offsets, height) && bound <= height);
    const packing::answer found = solve(items, bound, 3000);
    if (found.found == verdict::packed) CHECK(valid(items, found.offsets, bound));
    else CHECK(found.offsets.empty());
  }
}

void test_limits() {
  CHECK(solve(hard, 9, 0).found == verdict::stopped);
  budget ended(plenty, 0.0, {});
  std::vector<item> chain;
  for (int64_t i = 0; i < 3000; i++) chain.push_back({i, i + 2, 1 + i % 3, 1});
  CHECK(packing::fit(chain, 5, ended).found == verdict::stopped && ended.spent() < 1000);
  int asked = 0;
  budget interrupted(plenty, 1e9, [&asked] { return ++asked == 2; });
  CHECK(packing::fit(chain, 5, interrupted).found == verdict::stopped && asked == 2);
}

void test_threads() {
  const packing::answer alone = solve(hard, 10);
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; i++) {
    threads.emplace_back([&alone] { CHECK(solve(hard, 10).offsets == alone.offsets && solve(hard, 9).found == verdict::impossible); });
  }
  for (std::thread &each : threads) each.join();
}

}  // namespace

int main() {
  test_answers();
  test_random_problems();
  test_limits();
  test_threads();
  std::puts("csrc/solver: all tests passed");
  return 0;
}
