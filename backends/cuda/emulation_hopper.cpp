// Hopper's own: barriers in memory, bulk copies that complete on them, and products of four warps.
//
// Everything asynchronous happens as late as it may: a bulk copy when no thread of the block can go on without it, a store and a
// product when their thread waits; until then registers hold NaN and shared memory may not be touched. What a product reads it reads
// as early and as late as it may, when it is issued and when its thread waits for it. Layouts are those of device.h.

#include "emulation_state.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>

namespace tw {
namespace {

struct BulkLoad {
  char *to;
  std::vector<char> data;
};

struct MemoryBarrier {
  unsigned arrivals = 0, pending = 0, phase = 0;
  long expected = 0;  // bytes that were announced and have not come
  size_t slot = 0;
  uint32_t copies = 0;
  std::vector<uint32_t> known;
  std::vector<BulkLoad> loads;
  std::vector<Fiber *> waiting;
};

std::map<unsigned long long *, MemoryBarrier> barriers;

MemoryBarrier &barrier_at(unsigned long long *place) {
  const auto found = barriers.find(place);
  if (found == barriers.end()) fault("an mbarrier that was not initialised");
  return found->second;
}

void end_phase(MemoryBarrier &barrier) {
  if (barrier.pending != 0 || barrier.expected != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.arrivals;
  for (Fiber *fiber : barrier.waiting) {
    learn(*fiber, barrier.known);
    fiber->state = READY;
  }
  barrier.waiting.clear();
}

// --- products of four warps ---

struct Group {
  size_t arrived = 0;
  tw_wgmma_arguments *arguments[128] = {};
  Fiber *fibers[128] = {};
};

std::map<size_t, Group> groups;  // by the number of the first warp, in fours

// Element i of a piece of 16 bytes.
double element(const char *piece, int i, const Format &format) {
  unsigned word;
  std::memcpy(&word, piece + i / format.steps_a_word * 4, 4);
  return format.value(word, i % format.steps_a_word);
}

// A piece of 16 bytes of a matrix, as the units find it.
const char *piece_at(Fiber &fiber, unsigned address, bool exchanged) {
  const char *place = shared_place(exchanged ? address ^ (address >> 7 & 7) << 4 : address);
  read_by_unit(fiber, place, 16);
  UnitRead read = {place, {}, 0};
  std::memcpy(read.data, place, 16);
  fiber.reads.push_back(read);
  return place;
}

// What a descriptor says: the first byte, and the distances that device.h names for its layout.
struct Described { unsigned start, distance, stride; };

Described described(Fiber &fiber, unsigned long long descriptor, unsigned layout) {
  if (descriptor >> 62 != layout)
    fault(format("a descriptor of layout %u, expected %u: rows of 128 bytes with exchanged pieces on the left (1), squares on the right (0)",
                 unsigned(descriptor >> 62), layout), &fiber);
  return {unsigned(descriptor & 0x3fff) << 4, unsigned(descriptor >> 16 & 0x3fff) << 4, unsigned(descriptor >> 32 & 0x3fff) << 4};
}

// The steps of each of 64 rows, in which steps lie side by side.
std::vector<double> left_operand(Fiber &fiber, unsigned long long descriptor, const Format &format) {
  const Described part = described(fiber, descriptor, 1);
  const int inside = format.steps / 2;
  std::vector<double> values(size_t(64 * format.steps));
  for (int row = 0; row < 64; ++row)
    for (int piece = 0; piece < 2; ++piece) {
      const char *place = piece_at(fiber, part.start + unsigned(row / 8) * part.stride + unsigned(row % 8) * 128 + unsigned(piece) * 16, true);
      for (int i = 0; i < inside; ++i) values[size_t(row * format.steps + piece * inside + i)] = element(place, i, format);
    }
  return values;
}

// The same, of words that the threads hold as a 16 x 8 product takes them.
std::vector<double> left_words(const Group &group, const Format &format) {
  std::vector<double> values(size_t(64 * format.steps));
  for (int thread = 0; thread < 128; ++thread) {
    const unsigned *words = group.arguments[thread]->words;
    group.fibers[thread]->held.push_back({words, {words[0], words[1], words[2], words[3]}, 0});
    for (int word = 0; word < 4; ++word) {
      const int row = thread / 32 * 16 + thread % 32 / 4 + word % 2 * 8, step = thread % 4 + word / 2 * 4;
      values[size_t(row * format.steps + step)] = format.value(words[word], 0);
    }
  }
  return values;
}

// The steps of each column, in squares: `distance` from the steps of one to the next, `stride` from 8 columns to the next. In a square of 16
// bits columns lie side by side, in one of bytes or tf32 steps.
std::vector<double> right_operand(Fiber &fiber, unsigned long long descriptor, int columns, const Format &format) {
  const Described part = described(fiber, descriptor, 0);
  const int steps = format.steps;
  std::vector<double> values(size_t(columns * steps));
  if (format.steps_a_word != 2) {
    const int inside = steps / 2;
    for (int column = 0; column < columns; ++column)
      for (int piece = 0; piece < 2; ++piece) {
        const char *place = piece_at(fiber, part.start + unsigned(column / 8) * part.stride + unsigned(piece) * part.distance +
                                                unsigned(column % 8) * 16, false);
        for (int i = 0; i < inside; ++i) values[size_t(column * steps + piece * inside + i)] = element(place, i, format);
      }
    return values;
  }
  for (int step = 0; step < steps; ++step)
    for (int column = 0; column < columns; column += 8) {
      const char *place = piece_at(fiber, part.start + unsigned(column / 8) * part.stride + unsigned(step / 8) * part.distance +
                                              unsigned(step % 8) * 16, false);
      for (int i = 0; i < 8; ++i) values[size_t((column + i) * steps + step)] = element(place, i, format);
    }
  return values;
}

void multiply(Group &group) {
  const tw_wgmma_arguments &common = *group.arguments[0];
  for (const tw_wgmma_arguments *one : group.arguments)
    if (one->operation != common.operation || one->columns != common.columns || one->left != common.left || one->right != common.right || one->accumulates != common.accumulates)
      fault("the threads of four warps give different operands of one product");
  const Format left = left_format(common.operation), right = right_format(common.operation);
  const std::vector<double> a = common.words ? left_words(group, left) : left_operand(*group.fibers[0], common.left, left);
  const std::vector<double> b = right_operand(*group.fibers[0], common.right, common.columns, right);
  const int steps = left.steps;
  for (int thread = 0; thread < 128; ++thread) {
    Fiber &fiber = *group.fibers[thread];
    uint32_t *sums = static_cast<uint32_t *>(group.arguments[thread]->sums);
    const auto same = [&](const Product &product) { return product.sums == sums; };
    auto found = std::find_if(fiber.products.begin(), fiber.products.end(), same);
    if (found == fiber.products.end()) {
      fiber.products.push_back({sums, std::vector<uint32_t>(sums, sums + common.columns / 2), 0});
      found = fiber.products.end() - 1;
    }
    found->group = 0;
    for (int i = 0; i < common.columns / 2; ++i) {
      const int row = thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, column = i / 4 * 8 + thread % 4 * 2 + i % 2;
      double sum = 0.0;
      for (int k = 0; k < steps; ++k) sum += a[size_t(row * steps + k)] * b[size_t(column * steps + k)];
      uint32_t &total = found->values[size_t(i)];
      if (has_integer_sums(common.operation)) {
        total = (common.accumulates ? total : 0) + uint32_t(int(sum));
      } else {
        float before = 0.0f;
        if (common.accumulates) std::memcpy(&before, &total, 4);
        before = float(sum + double(before));
        std::memcpy(&total, &before, 4);
      }
      sums[i] = 0x7fc00000;  // NaN, and no likely sum of integers
    }
  }
}

}  // namespace

void start_hopper() {
  barriers.clear();
  groups.clear();
}

bool advance_copies() {
  bool moved = false;
  for (auto &[place, barrier] : barriers) {
    for (const BulkLoad &load : barrier.loads) {
      std::memcpy(load.to, load.data.data(), load.data.size());
      mark_brought(load.to, load.data.size(), barrier.slot, ++barrier.copies);
      barrier.known[block.count + barrier.slot] = barrier.copies;
      barrier.expected -= long(load.data.size());
      moved = true;
    }
    if (barrier.loads.empty()) continue;
    barrier.loads.clear();
    end_phase(barrier);
  }
  return moved;
}

}  // namespace tw

using namespace tw;

extern "C" {

void tw_emulated_mbarrier_init(unsigned long long *place, unsigned arrivals) {
  Fiber &fiber = *block.running;
  if (!is_shared(place, 8)) fault("an mbarrier outside of shared memory");
  touch(fiber, place, 8, TW_WRITE);
  MemoryBarrier &barrier = barriers[place];
  barrier = MemoryBarrier();
  barrier.arrivals = barrier.pending = arrivals;
  barrier.slot = (barriers.size() - 1) % SLOTS;
  barrier.known.assign(block.count + SLOTS, 0);
}

void tw_emulated_mbarrier_arrive(unsigned long long *place, unsigned bytes) {
  Fiber &fiber = *block.running;
  MemoryBarrier &barrier = barrier_at(place);
  touch(fiber, place, 8, TW_READ);
  if (barrier.pending == 0) fault("more arrivals at an mbarrier than it was initialised for");
  for (size_t i = 0; i < barrier.known.size(); ++i) barrier.known[i] = std::max(barrier.known[i], (*fiber.clock.known)[i]);
  barrier.known[fiber.number] = std::max(barrier.known[fiber.number], fiber.clock.own);
  ++fiber.clock.own;
  --barrier.pending;
  barrier.expected += long(bytes);
  end_phase(barrier);
}

void tw_emulated_mbarrier_wait(unsigned long long *place, unsigned parity) {
  Fiber &fiber = *block.running;
  touch(fiber, place, 8, TW_READ);
  MemoryBarrier &barrier = barrier_at(place);
  if ((barrier.phase & 1) != (parity & 1)) return learn(fiber, barrier.known);
  barrier.waiting.push_back(&fiber);
  wait("an mbarrier");
}

void tw_emulated_bulk_load(void *shared, const void *global, unsigned bytes, unsigned long long *place) {
  Fiber &fiber = *block.running;
  MemoryBarrier &barrier = barrier_at(place);
  if (bytes % 16 || reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    fault(format("a bulk copy of %u bytes that is not in whole pieces of 16", bytes));
  if (!is_shared(shared, bytes)) fault("a bulk copy to what is no shared memory");
  touch(fiber, global, bytes, TW_READ);
  mark_pending(fiber, static_cast<char *>(shared), bytes);
  const char *from = static_cast<const char *>(global);
  barrier.loads.push_back({static_cast<char *>(shared), std::vector<char>(from, from + bytes)});
}

void tw_emulated_bulk_store(void *global, const void *shared, unsigned bytes) {
  Fiber &fiber = *block.running;
  if (bytes % 16 || reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    fault(format("a bulk copy of %u bytes that is not in whole pieces of 16", bytes));
  const char *from = static_cast<const char *>(shared);
  read_by_unit(fiber, from, bytes);
  touch(fiber, global, bytes, TW_WRITE);
  fiber.stores.push_back({static_cast<char *>(global), from, std::vector<char>(from, from + bytes), false});
}

void tw_emulated_bulk_commit() {
  for (BulkStore &store : block.running->stores) store.committed = true;
}

void tw_emulated_bulk_wait() {
  std::vector<BulkStore> &stores = block.running->stores;
  for (const BulkStore &store : stores) {
    if (!store.committed) continue;
    if (std::memcmp(store.from, store.data.data(), store.data.size())) fault("shared memory was changed while a bulk copy was reading it");
    std::memcpy(store.to, store.data.data(), store.data.size());
  }
  stores.erase(std::remove_if(stores.begin(), stores.end(), [](const BulkStore &store) { return store.committed; }), stores.end());
}

void tw_emulated_wgmma(tw_wgmma_arguments *arguments) {
  Fiber &fiber = *block.running;
  Group &group = groups[fiber.number / 128];
  group.arguments[fiber.number % 128] = arguments;
  group.fibers[fiber.number % 128] = &fiber;
  if (++group.arrived < 128) return wait("a product of four warps");
  multiply(group);
  for (Fiber *other : group.fibers)
    if (other != &fiber) other->state = READY;
  group = Group();
}

void tw_emulated_wgmma_commit() {
  Fiber &fiber = *block.running;
  ++fiber.product_groups;
  for (Product &product : fiber.products)
    if (!product.group) product.group = fiber.product_groups;
  for (UnitRead &read : fiber.reads)
    if (!read.group) read.group = fiber.product_groups;
  for (HeldWords &held : fiber.held)
    if (!held.group) held.group = fiber.product_groups;
}

void tw_emulated_wgmma_wait(int open) {
  Fiber &fiber = *block.running;
  const auto done = [&](unsigned group) { return group && long(group) <= long(fiber.product_groups) - open; };
  for (const UnitRead &read : fiber.reads) {
    if (!done(read.group)) continue;
    read_by_unit(fiber, read.place, 16);
    if (std::memcmp(read.place, read.data, 16)) fault("shared memory was changed while a product was reading it");
  }
  for (const HeldWords &held : fiber.held)
    if (done(held.group) && std::memcmp(held.words, held.data, 16)) fault("registers were changed while a product was reading them");
  for (const Product &product : fiber.products)
    if (done(product.group)) std::memcpy(product.sums, product.values.data(), product.values.size() * 4);
  const auto finished = [&](const auto &one) { return done(one.group); };
  fiber.reads.erase(std::remove_if(fiber.reads.begin(), fiber.reads.end(), finished), fiber.reads.end());
  fiber.held.erase(std::remove_if(fiber.held.begin(), fiber.held.end(), finished), fiber.held.end());
  fiber.products.erase(std::remove_if(fiber.products.begin(), fiber.products.end(), finished), fiber.products.end());
}
}
