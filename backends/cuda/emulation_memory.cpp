// Which memory a kernel may touch, what in it is initialised, and in which order threads touch it.
//
// A library with checks is compiled with the calls that compilers make for a race detector (`__tsan_read4` and its like, which
// this file defines): each access of a kernel comes here. A cell for each byte knows the last store and two readers since. An access
// is a race if it meets a store of another thread (or stores where another thread has read) that is not ordered before it by a barrier,
// `__syncwarp` or an mbarrier; between blocks, by an atomic operation on one place after a fence. Two readers are remembered, so a race
// of a store with a third may be missed; nothing is reported that is none.

#include "emulation_state.h"

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

namespace tw {
namespace {

enum Fill : uint8_t { EMPTY, PENDING, FULL };

struct Cell {
  uint32_t write_block, write_clock, read_block, read_clock[2];
  uint16_t writer, reader[2];
  Fill fill;
  uint8_t atomic;
};

struct Array {
  const char *name;
  char *begin;
  size_t bytes;
  Cell *cells;
  bool writable;
  uint32_t serial;  // of a shared array: the block that has it
};

constexpr size_t GAP = 256;

alignas(1024) char dynamic_memory[SHARED_LIMIT + 1024];
Cell *dynamic_cells;
std::vector<Array> shared_arrays, global_arrays, dynamic_arrays;
// Blocks that the running one comes after, by atomic operations, and the same of those that ran before.
std::unordered_map<uint32_t, std::unordered_set<uint32_t>> acquired;
uintptr_t image_begin, image_end;

Cell *make_cells(size_t count) {
  void *memory = mmap(nullptr, std::max<size_t>(count, 1) * sizeof(Cell), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : static_cast<Cell *>(memory);
}

// The part of the address space that this library takes: built-in variables and constants lie there.
void find_image() {
  const auto visit = [](dl_phdr_info *info, size_t, void *) {
    uintptr_t begin = ~uintptr_t(0), end = 0;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
      begin = std::min(begin, uintptr_t(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr));
      end = std::max(end, uintptr_t(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz));
    }
    const uintptr_t here = reinterpret_cast<uintptr_t>(&image_begin);
    if (here < begin || here >= end) return 0;
    image_begin = begin;
    image_end = end;
    return 1;
  };
  dl_iterate_phdr(visit, nullptr);
}

bool knows(const Fiber &fiber, size_t thread, uint32_t clock) {
  return thread == fiber.number || (*fiber.clock.known)[thread] >= clock;
}

std::string thread_text(size_t number) {
  const Fiber &fiber = *block.fibers[number];
  return format("thread (%u, %u, %u)", fiber.index.x, fiber.index.y, fiber.index.z);
}

std::string place_text(const Array &array, size_t offset, size_t bytes) {
  return format("%zu byte%s at byte %zu of %s", bytes, bytes == 1 ? "" : "s", offset, array.name);
}

const char *verb(int kind) { return kind == TW_READ ? "reads" : kind == TW_WRITE ? "writes" : "updates"; }

bool ordered_between_blocks(uint32_t other) {
  const auto found = acquired.find(block.serial);
  return found != acquired.end() && found->second.count(other);
}

// What an atomic operation learns from the one before it at the same place.
void acquire(uint32_t other) {
  std::unordered_set<uint32_t> &own = acquired[block.serial];
  own.insert(other);
  const auto theirs = acquired.find(other);
  if (theirs != acquired.end() && other != block.serial) own.insert(theirs->second.begin(), theirs->second.end());
}

[[noreturn]] void report_race(Fiber &fiber, const Array &array, size_t offset, size_t bytes, int kind, const std::string &other,
                              const char *did) {
  fault(format("race: %s ", verb(kind)) + place_text(array, offset, bytes) + ", which " + other + " " + did + " with nothing between", &fiber);
}

void check_order(Fiber &fiber, const Array &array, Cell &cell, size_t offset, size_t bytes, int kind) {
  if (cell.write_clock && !(kind == TW_ATOMIC && cell.atomic)) {
    if (cell.write_block != block.serial) {
      if (!ordered_between_blocks(cell.write_block)) report_race(fiber, array, offset, bytes, kind, "another block", "has stored");
    } else if (!knows(fiber, cell.writer, cell.write_clock)) {
      const bool copied = cell.writer >= block.count;
      report_race(fiber, array, offset, bytes, kind, copied ? "the copy engine" : thread_text(cell.writer), "has stored");
    }
  }
  if (kind == TW_READ) return;
  for (int i = 0; i < 2; ++i) {
    if (!cell.read_clock[i]) continue;
    if (cell.read_block != block.serial) {
      if (!ordered_between_blocks(cell.read_block)) report_race(fiber, array, offset, bytes, kind, "another block", "has read");
    } else if (!knows(fiber, cell.reader[i], cell.read_clock[i])) {
      report_race(fiber, array, offset, bytes, kind, thread_text(cell.reader[i]), "has read");
    }
  }
}

void note(Fiber &fiber, Cell &cell, int kind) {
  const uint16_t thread = uint16_t(fiber.number);
  if (kind == TW_READ) {
    if (cell.read_block != block.serial) cell.read_clock[0] = cell.read_clock[1] = 0;
    cell.read_block = block.serial;
    if (cell.read_clock[0] && cell.reader[0] != thread) {
      cell.reader[1] = cell.reader[0];
      cell.read_clock[1] = cell.read_clock[0];
    }
    cell.reader[0] = thread;
    cell.read_clock[0] = fiber.clock.own;
    return;
  }
  if (kind == TW_ATOMIC && cell.atomic && block.fenced && cell.write_block != block.serial) acquire(cell.write_block);
  cell.write_block = block.serial;
  cell.writer = thread;
  cell.write_clock = fiber.clock.own;
  cell.read_clock[0] = cell.read_clock[1] = 0;
  cell.fill = FULL;
  cell.atomic = kind == TW_ATOMIC && block.fenced ? 2 : kind == TW_ATOMIC;
}

void check_cells(Fiber &fiber, const Array &array, size_t offset, size_t bytes, int kind, bool shared) {
  for (size_t i = offset; i < offset + bytes; ++i) {
    Cell &cell = array.cells[i];
    if (shared && cell.write_block != block.serial) {
      cell = Cell();
      cell.write_block = block.serial;
    }
    if (cell.fill == PENDING)
      fault(format("%s ", verb(kind)) + place_text(array, offset, bytes) + ", which an asynchronous copy is yet to fill: a wait is missing", &fiber);
    if (shared && kind != TW_WRITE && cell.fill == EMPTY)
      fault(format("%s ", verb(kind)) + place_text(array, offset, bytes) + ", which nothing has stored", &fiber);
    check_order(fiber, array, cell, offset, bytes, kind);
    note(fiber, cell, kind);
  }
}

// The array that holds the place; `gap` bytes behind each belong to it, and are out of bounds.
const Array *find(const std::vector<Array> &arrays, const char *place, size_t bytes, size_t gap) {
  const Array *near = nullptr;
  for (const Array &array : arrays) {
    if (array.serial && array.serial != block.serial) continue;
    if (place >= array.begin && place + bytes <= array.begin + array.bytes) return &array;
    if (place >= array.begin && place < array.begin + array.bytes + gap) near = &array;
  }
  return near;
}

[[noreturn]] void report_outside(Fiber &fiber, const char *place, size_t bytes, int kind, const std::vector<Array> &arrays, const char *where) {
  const Array *nearest = nullptr;
  for (const Array &array : arrays)
    if ((!array.serial || array.serial == block.serial) && place + bytes > array.begin && (!nearest || array.begin > nearest->begin)) nearest = &array;
  std::string text = format("%s %zu bytes outside of %s", verb(kind), bytes, where);
  if (nearest) text += format(": at byte %zu of %s, which has %zu", size_t(place - nearest->begin), nearest->name, nearest->bytes);
  fault(text, &fiber);
}

void touch_global(Fiber &fiber, const char *place, size_t bytes, int kind) {
  const auto after = std::upper_bound(global_arrays.begin(), global_arrays.end(), place,
                                      [](const char *p, const Array &array) { return p < array.begin; });
  if (after != global_arrays.begin()) {
    const Array &array = *(after - 1);
    const size_t offset = size_t(place - array.begin);
    if (offset + bytes <= array.bytes) {
      if (kind != TW_READ && !array.writable) fault(format("%s ", verb(kind)) + place_text(array, offset, bytes) + ", which is only read", &fiber);
      if (tw_emulated_checks) check_cells(fiber, array, offset, bytes, kind, false);
      return;
    }
  }
  const uintptr_t address = reinterpret_cast<uintptr_t>(place);
  if (address >= image_begin && address < image_end) return;
  if (global_arrays.empty()) return;
  report_outside(fiber, place, bytes, kind, global_arrays, "all arrays");
}

std::vector<std::string> names;

void give_back(Cell *cells, size_t count) {
  if (cells) munmap(cells, std::max<size_t>(count, 1) * sizeof(Cell));
}

// What is kept from launch to launch goes when the library is unloaded.
struct Kept {
  ~Kept() {
    give_back(dynamic_cells, sizeof dynamic_memory);
    for (const Array &array : shared_arrays) give_back(array.cells, array.bytes);
  }
} kept;

}  // namespace

void start_launch(const tw_emulated_range *ranges, unsigned long long count) {
  if (!image_end) find_image();
  if (!dynamic_cells && tw_emulated_checks) dynamic_cells = make_cells(sizeof dynamic_memory);
  global_arrays.clear();
  acquired.clear();
  names.clear();
  for (unsigned long long i = 0; i < count; ++i) names.push_back(format("array %llu", i));
  for (unsigned long long i = 0; i < count; ++i) {
    if (!ranges[i].bytes) continue;
    Cell *cells = tw_emulated_checks ? make_cells(ranges[i].bytes) : nullptr;
    global_arrays.push_back({names[i].c_str(), reinterpret_cast<char *>(ranges[i].begin), ranges[i].bytes, cells, ranges[i].writable != 0, 0});
  }
  std::sort(global_arrays.begin(), global_arrays.end(), [](const Array &a, const Array &b) { return a.begin < b.begin; });
}

void end_launch() {
  for (const Array &array : global_arrays) give_back(array.cells, array.bytes);
  global_arrays.clear();
}

void start_memory() { dynamic_arrays.clear(); }

void start_clocks() {
  const Known nothing = std::make_shared<const std::vector<uint32_t>>(block.count + SLOTS);
  for (size_t i = 0; i < block.count; ++i) block.fibers[i]->clock = {1, nothing};
}

Clock clock_of(const Fiber &fiber) { return fiber.clock; }

void advance_clock(Fiber &fiber) { ++fiber.clock.own; }

void join_clocks(const std::vector<Arrival> &arrived, const std::vector<Fiber *> &waiting) {
  if (!tw_emulated_checks) return;
  auto all = std::make_shared<std::vector<uint32_t>>(*arrived.front().clock.known);
  const std::vector<uint32_t> *joined = arrived.front().clock.known.get();
  for (const Arrival &arrival : arrived) {
    const std::vector<uint32_t> *known = arrival.clock.known.get();
    if (known != joined)
      for (size_t i = 0; i < all->size(); ++i) (*all)[i] = std::max((*all)[i], (*known)[i]);
    joined = known;
  }
  for (const Arrival &arrival : arrived) {
    uint32_t &own = (*all)[arrival.fiber->number];
    own = std::max(own, arrival.clock.own);
  }
  const Known known = std::move(all);
  for (Fiber *fiber : waiting) {
    fiber->clock.known = known;
    ++fiber->clock.own;
  }
}

void touch(Fiber &fiber, const void *where, size_t bytes, int kind) {
  char *place = static_cast<char *>(const_cast<void *>(where));
  if (place >= fiber.stack && place < fiber.stack + fiber.stack_bytes) return;
  if (place >= dynamic_memory && place < dynamic_memory + sizeof dynamic_memory) {
    const Array *array = find(dynamic_arrays, place, bytes, 0);
    if (!array) report_outside(fiber, place, bytes, kind, dynamic_arrays, "the arrays in shared memory");
    if (tw_emulated_checks) check_cells(fiber, *array, size_t(place - array->begin), bytes, kind, true);
    return;
  }
  if (const Array *array = find(shared_arrays, place, bytes, GAP)) {
    if (place + bytes > array->begin + array->bytes) report_outside(fiber, place, bytes, kind, shared_arrays, "shared memory");
    if (tw_emulated_checks) check_cells(fiber, *array, size_t(place - array->begin), bytes, kind, true);
    return;
  }
  touch_global(fiber, place, bytes, kind);
}

bool is_shared(const void *where, size_t bytes) {
  const char *place = static_cast<const char *>(where);
  return (place >= dynamic_memory && place < dynamic_memory + sizeof dynamic_memory) || find(shared_arrays, place, bytes, GAP);
}

namespace {

// The array of shared memory that holds a place which `touch` has found to be within one.
const Array &shared_array(const char *place, size_t bytes) {
  const bool dynamic = place >= dynamic_memory && place < dynamic_memory + sizeof dynamic_memory;
  return *find(dynamic ? dynamic_arrays : shared_arrays, place, bytes, 0);
}

}  // namespace

void mark_pending(Fiber &fiber, char *place, size_t bytes) {
  touch(fiber, place, bytes, TW_WRITE);
  if (!tw_emulated_checks) return;
  const Array &array = shared_array(place, bytes);
  for (size_t i = 0; i < bytes; ++i) array.cells[place - array.begin + long(i)].fill = PENDING;
}

void mark_arrived(Fiber &fiber, char *place, size_t bytes) {
  if (!tw_emulated_checks) return;
  const Array &array = shared_array(place, bytes);
  for (size_t i = 0; i < bytes; ++i) note(fiber, array.cells[place - array.begin + long(i)], TW_WRITE);
}

void read_by_unit(Fiber &fiber, const char *place, size_t bytes) {
  if (!is_shared(place, bytes)) fault("an operand of a unit that does not lie in shared memory", &fiber);
  touch(fiber, place, bytes, TW_READ);
  if (!tw_emulated_checks) return;
  const Array &array = shared_array(place, bytes);
  for (size_t i = 0; i < bytes; ++i) {
    const Cell &cell = array.cells[place - array.begin + long(i)];
    if (cell.writer < block.count && block.fibers[cell.writer]->fenced < cell.write_clock)
      fault("a unit reads " + place_text(array, size_t(place - array.begin), bytes) + ", which " + thread_text(cell.writer) +
            " has stored without tw_async_proxy_fence behind", &fiber);
  }
}

char *shared_place(unsigned address) { return dynamic_memory + address; }

void mark_brought(char *place, size_t bytes, size_t slot, uint32_t count) {
  if (!tw_emulated_checks) return;
  const Array &array = shared_array(place, bytes);
  for (size_t i = 0; i < bytes; ++i) {
    Cell &cell = array.cells[place - array.begin + long(i)];
    cell.fill = FULL;
    cell.write_block = block.serial;
    cell.writer = uint16_t(block.count + slot);
    cell.write_clock = count;
    cell.read_clock[0] = cell.read_clock[1] = 0;
  }
}

void learn(Fiber &fiber, const std::vector<uint32_t> &known) {
  auto all = std::make_shared<std::vector<uint32_t>>(*fiber.clock.known);
  for (size_t i = 0; i < all->size(); ++i) (*all)[i] = std::max((*all)[i], known[i]);
  fiber.clock.known = std::move(all);
}

}  // namespace tw

using namespace tw;

extern "C" {

void tw_emulated_shared(void *memory, unsigned long bytes, const char *name) {
  char *begin = static_cast<char *>(memory);
  for (Array &array : shared_arrays)
    if (array.begin == begin) {
      array.serial = block.serial;
      return;
    }
  shared_arrays.push_back({name, begin, bytes, tw_emulated_checks ? make_cells(bytes) : nullptr, true, block.serial});
}

unsigned char *tw_emulated_dynamic(unsigned long offset, unsigned long bytes, const char *name) {
  if (offset + bytes > launch.shared_bytes)
    fault(format("array %s ends at byte %lu of shared memory; the launch asked for %llu", name, offset + bytes, launch.shared_bytes));
  char *begin = dynamic_memory + offset;
  const auto same = [&](const Array &array) { return array.begin == begin && array.bytes == bytes; };
  if (std::none_of(dynamic_arrays.begin(), dynamic_arrays.end(), same))
    dynamic_arrays.push_back({name, begin, bytes, dynamic_cells + offset, true, 0});
  return reinterpret_cast<unsigned char *>(begin);
}

void tw_emulated_touch(const void *place, unsigned long bytes, int kind) { touch(*block.running, place, bytes, kind); }

unsigned tw_emulated_shared_address(const void *shared) {
  const char *place = static_cast<const char *>(shared);
  if (place < dynamic_memory || place >= dynamic_memory + sizeof dynamic_memory) fault("a matrix that does not lie in dynamic shared memory");
  return unsigned(place - dynamic_memory);
}

void tw_emulated_proxy_fence() {
  Fiber &fiber = *block.running;
  fiber.fenced = fiber.clock.own++;
}

void tw_emulated_fence() { block.fenced = true; }

void tw_emulated_copy(void *shared, const void *global, unsigned long bytes, bool valid) {
  Fiber &fiber = *block.running;
  char *to = static_cast<char *>(shared);
  if (!is_shared(to, bytes)) fault("an asynchronous copy to what is no shared memory");
  if (reinterpret_cast<uintptr_t>(to) % bytes || (valid && reinterpret_cast<uintptr_t>(global) % bytes))
    fault(format("an asynchronous copy of %lu bytes between places that are not aligned to as much", bytes));
  std::vector<char> data(bytes);
  if (valid) {
    touch(fiber, global, bytes, TW_READ);
    std::memcpy(data.data(), global, bytes);
  }
  mark_pending(fiber, to, bytes);
  fiber.open.push_back({to, std::move(data)});
}

void tw_emulated_commit() {
  Fiber &fiber = *block.running;
  fiber.groups.push_back(std::move(fiber.open));
  fiber.open.clear();
}

void tw_emulated_wait(int open) {
  Fiber &fiber = *block.running;
  for (; fiber.groups.size() > size_t(open); fiber.groups.pop_front())
    for (const Copy &copy : fiber.groups.front()) {
      std::memcpy(copy.to, copy.data.data(), copy.data.size());
      mark_arrived(fiber, copy.to, copy.data.size());
    }
}

// What a compiler calls for the race detector; places in registers or on a stack that nothing else sees come only seldom.
#define TW_ACCESS(bytes)                                                                                 \
  void __tsan_read##bytes(void *place) { touch(*block.running, place, bytes, TW_READ); }               \
  void __tsan_write##bytes(void *place) { touch(*block.running, place, bytes, TW_WRITE); }             \
  void __tsan_unaligned_read##bytes(void *place) { touch(*block.running, place, bytes, TW_READ); }     \
  void __tsan_unaligned_write##bytes(void *place) { touch(*block.running, place, bytes, TW_WRITE); }
TW_ACCESS(1)
TW_ACCESS(2)
TW_ACCESS(4)
TW_ACCESS(8)
TW_ACCESS(16)
#undef TW_ACCESS
void __tsan_read_range(void *place, unsigned long bytes) { touch(*block.running, place, bytes, TW_READ); }
void __tsan_write_range(void *place, unsigned long bytes) { touch(*block.running, place, bytes, TW_WRITE); }
void __tsan_func_entry(void *) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
