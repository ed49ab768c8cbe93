// What the parts of the emulation share: the block that runs, its threads, and what is known of the order of their accesses.

#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "emulation.h"

#define __align__(bytes) __attribute__((aligned(bytes)))
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
#include "emulation_hooks.h"

extern "C" {
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
// Made of the source: its kernels, and whether the compiler reports accesses.
extern const tw_emulated_kernel tw_emulated_table[];
extern const int tw_emulated_checks;
}

namespace tw {

constexpr size_t SLOTS = 64;  // of mbarriers whose copies are told apart
constexpr unsigned long long SHARED_LIMIT = 232448;  // what a block may ask for on sm_90

// --- order of accesses: vector clocks ---
//
// A thread has a count of its own, and knows of each other one up to which count it happened before. What all members of a meeting
// know is one array that they share. Slots behind those of the threads stand for mbarriers, by which copies become known.
using Known = std::shared_ptr<const std::vector<uint32_t>>;
struct Clock {
  uint32_t own;
  Known known;
};

struct Copy {
  char *to;
  std::vector<char> data;
};

// Sums of products of four warps that this thread will have; the group of the last one, 0 before it is closed.
struct Product {
  void *sums;
  std::vector<uint32_t> values;
  unsigned group;
};

// 16 bytes of shared memory that a product of that group may still read, and what was there when it began.
struct UnitRead {
  const char *place;
  char data[16];
  unsigned group;
};

// Words in registers that a product of that group may still read.
struct HeldWords {
  const unsigned *words;
  unsigned data[4];
  unsigned group;
};

// A copy from shared to global memory, and what lay there when it began.
struct BulkStore {
  char *to;
  const char *from;
  std::vector<char> data;
  bool committed;
};

enum State { READY, WAITING, DONE };

struct Fiber {
  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber &) = delete;
  Fiber &operator=(const Fiber &) = delete;

  void *context = nullptr;
  char *stack = nullptr;
  size_t stack_bytes = 0;
  size_t number = 0;
  uint3 index{};
  State state = DONE;
  const char *waits_for = nullptr;
  bool diverged = false;
  Clock clock{1, nullptr};
  uint32_t fenced = 0;                   // its count at its last fence for the units that read shared memory by themselves
  std::vector<Product> products;         // that no wait has made known
  std::vector<UnitRead> reads;           // of them, for the first thread of four warps
  std::vector<HeldWords> held;           // of them
  unsigned product_groups = 0;
  std::vector<BulkStore> stores;
  std::vector<Copy> open;                // copies that no commit has closed into a group
  std::deque<std::vector<Copy>> groups;  // the oldest first
};

struct Arrival {
  Fiber *fiber;
  Clock clock;
};

struct Barrier {
  int threads = 0;
  std::vector<Arrival> arrived;
  std::vector<Fiber *> waiting;
};

struct Meeting {
  int operation;
  unsigned mask, arrived;
  void *arguments[32];
};

struct Warp {
  Fiber *lanes[32] = {};
  unsigned alive = 0;
  std::vector<Meeting> meetings;
};

struct Block {
  std::vector<std::unique_ptr<Fiber>> fibers;
  size_t count = 0, alive = 0;
  Fiber *running = nullptr;
  std::vector<Warp> warps;
  Barrier barriers[16];
  uint32_t serial = 0;  // counts all blocks of all launches
  bool fenced = false;  // some thread has made its stores known to other blocks
};

struct Launch {
  const tw_emulated_kernel *kernel = nullptr;
  void **parameters = nullptr;
  unsigned long long shared_bytes = 0;
  bool failed = false;
  std::string message;
};

extern Block block;
extern Launch launch;

// emulation.cpp
std::string format(const char *pattern, ...) __attribute__((format(printf, 1, 2)));
// Ends the launch; called by the running fiber, which is the one to blame unless another is named.
[[noreturn]] void fault(const std::string &what, const Fiber *who = nullptr);
void wait(const char *for_what);                   // until another one makes the running fiber ready
void on_return(Fiber &fiber);

// emulation_memory.cpp
void start_launch(const tw_emulated_range *ranges, unsigned long long count);
void end_launch();
void start_memory();
void start_clocks();
Clock clock_of(const Fiber &fiber);
void advance_clock(Fiber &fiber);
void join_clocks(const std::vector<Arrival> &arrived, const std::vector<Fiber *> &waiting);
void touch(Fiber &fiber, const void *place, size_t bytes, int kind);
void mark_pending(Fiber &fiber, char *place, size_t bytes);
void mark_arrived(Fiber &fiber, char *place, size_t bytes);
bool is_shared(const void *place, size_t bytes);
void read_by_unit(Fiber &fiber, const char *place, size_t bytes);  // the matrix units or the copy engine, for the fiber
char *shared_place(unsigned address);
void mark_brought(char *place, size_t bytes, size_t slot, uint32_t count);
void learn(Fiber &fiber, const std::vector<uint32_t> &known);

// emulation_hopper.cpp
void start_hopper();
bool advance_copies();

// emulation_matrix.cpp
const char *operation_name(int operation);
// Elements as they lie in words of operands, the steps of a word and of a product.
struct Format {
  int steps_a_word, steps;
  double (*value)(unsigned word, int place);
};
Format left_format(int operation);
Format right_format(int operation);
bool has_integer_sums(int operation);
void perform(const Meeting &meeting, Warp &warp);

}  // namespace tw
