// The emulation of a device: blocks one after another, a fiber a thread, barriers and warp-wide operations as meetings.
//
// Compiled once and linked with the host form of a kernel's source. A fiber runs until it waits for others; whoever completes a
// meeting makes the others ready. When no fiber can go on and not all have returned, the block has diverged: the fault says which
// threads wait where. `emulation_memory.cpp` checks accesses, `emulation_matrix.cpp` does what matrix units do.

#include "emulation_state.h"

#include <dlfcn.h>
#include <execinfo.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

extern "C" {
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
}

namespace tw {

Block block;
Launch launch;

namespace {

constexpr size_t STACK_BYTES = 256 << 10, GUARD_BYTES = 4096;

// --- switching between contexts: the registers that a call keeps, and the stack ---

#if defined(__x86_64__)
asm(R"(
    .text
    .p2align 4
    .hidden tw_switch
    .globl tw_switch
tw_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
extern "C" void tw_switch(void **save, void *load);
void *main_context;
void switch_to(Fiber &fiber) { tw_switch(&main_context, fiber.context); }
void switch_back(Fiber &fiber) { tw_switch(&fiber.context, main_context); }
#else
ucontext_t main_context;
void switch_to(Fiber &fiber) { swapcontext(&main_context, static_cast<ucontext_t *>(fiber.context)); }
void switch_back(Fiber &fiber) { swapcontext(static_cast<ucontext_t *>(fiber.context), &main_context); }
#endif

void run_thread() {
  launch.kernel->start(launch.parameters);
  Fiber &fiber = *block.running;
  fiber.state = DONE;
  on_return(fiber);
  switch_back(fiber);
}

void prepare(Fiber &fiber) {
  if (!fiber.stack) {
    void *memory = mmap(nullptr, STACK_BYTES + GUARD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) std::abort();
    mprotect(memory, GUARD_BYTES, PROT_NONE);
    fiber.stack = static_cast<char *>(memory) + GUARD_BYTES;
    fiber.stack_bytes = STACK_BYTES;
  }
#if defined(__x86_64__)
  void **top = reinterpret_cast<void **>(fiber.stack + STACK_BYTES);
  *--top = nullptr;  // where run_thread would return to: the end of the chain of calls
  *--top = reinterpret_cast<void *>(run_thread);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  fiber.context = top;
#else
  if (!fiber.context) fiber.context = new ucontext_t;
  ucontext_t *context = static_cast<ucontext_t *>(fiber.context);
  getcontext(context);
  context->uc_stack.ss_sp = fiber.stack;
  context->uc_stack.ss_size = STACK_BYTES;
  context->uc_link = nullptr;
  makecontext(context, run_thread, 0);
#endif
}

void run(Fiber &fiber) {
  block.running = &fiber;
  threadIdx = fiber.index;
  switch_to(fiber);
}

std::string thread_name(const Fiber &fiber) {
  return format("block (%u, %u, %u), thread (%u, %u, %u)", blockIdx.x, blockIdx.y, blockIdx.z, fiber.index.x, fiber.index.y, fiber.index.z);
}

// The calls that lead here, as places in this library.
std::string places() {
  void *frames[24];
  const int count = backtrace(frames, 24);
  Dl_info own;
  dladdr(reinterpret_cast<void *>(run_thread), &own);
  std::string text = "at";
  for (int i = 1; i < count; ++i) {
    Dl_info info;
    if (!dladdr(frames[i], &info) || info.dli_fbase != own.dli_fbase) continue;
    text += format(" 0x%zx", static_cast<size_t>(static_cast<char *>(frames[i]) - static_cast<char *>(own.dli_fbase)) - 1);
  }
  return text;
}

// --- meetings ---

void release(Fiber &fiber) {
  fiber.state = READY;
  fiber.waits_for = nullptr;
}

void complete(Barrier &barrier) {
  join_clocks(barrier.arrived, barrier.waiting);
  for (Fiber *fiber : barrier.waiting) release(*fiber);
  barrier.arrived.clear();
  barrier.waiting.clear();
}

void complete_if_all(Barrier &barrier) {
  const size_t expected = barrier.threads ? barrier.threads : block.alive;
  if (!barrier.arrived.empty() && barrier.arrived.size() >= expected) complete(barrier);
}

void complete_if_all(Warp &warp, size_t place) {
  Meeting &meeting = warp.meetings[place];
  if ((meeting.arrived & warp.alive) != (meeting.mask & warp.alive)) return;
  const Meeting all = meeting;
  warp.meetings.erase(warp.meetings.begin() + long(place));
  perform(all, warp);
  for (int lane = 0; lane < 32; ++lane)
    if (all.arrived >> lane & 1) release(*warp.lanes[lane]);
}

void start_block(const unsigned counts[3]) {
  const size_t threads = size_t(counts[0]) * counts[1] * counts[2];
  while (block.fibers.size() < threads) block.fibers.push_back(std::make_unique<Fiber>());
  block.count = block.alive = threads;
  block.fenced = false;
  ++block.serial;
  block.warps.assign((threads + 31) / 32, Warp());
  for (Barrier &barrier : block.barriers) barrier = Barrier();
  start_clocks();
  for (size_t i = 0; i < threads; ++i) {
    Fiber &fiber = *block.fibers[i];
    prepare(fiber);
    fiber.number = i;
    fiber.index = {unsigned(i % counts[0]), unsigned(i / counts[0] % counts[1]), unsigned(i / counts[0] / counts[1])};
    fiber.waits_for = nullptr;
    fiber.state = READY;
    fiber.open.clear();
    fiber.groups.clear();
    fiber.fenced = 0;
    fiber.products.clear();
    fiber.reads.clear();
    fiber.product_groups = 0;
    fiber.stores.clear();
    Warp &warp = block.warps[i / 32];
    warp.lanes[i % 32] = &fiber;
    warp.alive |= 1u << (i % 32);
  }
}

// No thread can go on: each kind of place where some wait is named, with the first of them.
void report_divergence() {
  std::string text = "threads wait for one another and none can go on:";
  Fiber *first = nullptr;
  std::vector<std::string> kinds;
  for (size_t i = 0; i < block.count; ++i) {
    Fiber &fiber = *block.fibers[i];
    const std::string kind = fiber.state == DONE ? "returned" : fiber.waits_for;
    if (fiber.state == WAITING && !first) first = &fiber;
    if (std::find(kinds.begin(), kinds.end(), kind) != kinds.end()) continue;
    size_t count = 0;
    for (size_t j = 0; j < block.count; ++j) {
      const Fiber &other = *block.fibers[j];
      count += kind == (other.state == DONE ? "returned" : other.waits_for);
    }
    text += format("%s %zu %s (first: thread (%u, %u, %u))", kinds.empty() ? "" : ",", count,
                   fiber.state == DONE ? "have returned" : (kind == "a copy" ? "wait for a copy" : ("wait at " + kind).c_str()),
                   fiber.index.x, fiber.index.y, fiber.index.z);
    kinds.push_back(kind);
  }
  // the first one that waits says by itself where it stands
  launch.message = text;
  first->diverged = true;
  run(*first);
}

void run_block(const unsigned counts[3]) {
  start_block(counts);
  start_memory();
  start_hopper();
  while (block.alive > 0) {
    bool moved = false;
    for (size_t i = 0; i < block.count; ++i) {
      Fiber &fiber = *block.fibers[i];
      if (fiber.state != READY) continue;
      moved = true;
      run(fiber);
      if (launch.failed) return;
    }
    if (!moved && !advance_copies()) return report_divergence();
  }
}

}  // namespace

Fiber::~Fiber() {
  if (stack) munmap(stack - GUARD_BYTES, STACK_BYTES + GUARD_BYTES);
#if !defined(__x86_64__)
  delete static_cast<ucontext_t *>(context);
#endif
}

std::string format(const char *pattern, ...) {
  char text[512];
  va_list values;
  va_start(values, pattern);
  vsnprintf(text, sizeof text, pattern, values);
  va_end(values);
  return text;
}

void fault(const std::string &what, const Fiber *who) {
  launch.message = format("kernel %s, ", launch.kernel->name) + thread_name(who ? *who : *block.running) + ": " + what + "\n" + places();
  launch.failed = true;
  switch_back(*block.running);
  __builtin_unreachable();
}

void wait(const char *for_what) {
  Fiber &fiber = *block.running;
  fiber.state = WAITING;
  fiber.waits_for = for_what;
  switch_back(fiber);
  if (fiber.diverged) {
    fiber.diverged = false;
    fault(launch.message);
  }
}

void on_return(Fiber &fiber) {
  bool under_way = !fiber.open.empty() || !fiber.products.empty() || !fiber.stores.empty();
  for (const std::vector<Copy> &group : fiber.groups) under_way |= !group.empty();
  if (under_way) fault("returns while asynchronous copies are under way: a wait is missing");
  --block.alive;
  Warp &warp = block.warps[fiber.number / 32];
  warp.alive &= ~(1u << (fiber.number % 32));
  for (size_t i = warp.meetings.size(); i-- > 0;) complete_if_all(warp, i);
  for (Barrier &barrier : block.barriers)
    if (!barrier.threads) complete_if_all(barrier);
}

}  // namespace tw

// --- what kernels call ---

using namespace tw;

extern "C" {

void tw_emulated_fault(const char *what) { fault(what); }

void tw_emulated_barrier(int number, int threads, int waits) {
  if (number < 0 || number > 15) fault(format("barrier %d: there are 16", number));
  if (threads % 32) fault(format("barrier %d for %d threads, which is no whole number of warps", number, threads));
  Barrier &barrier = block.barriers[number];
  if (!barrier.arrived.empty() && barrier.threads != threads)
    fault(format("barrier %d for %d threads, while others wait there for %d", number, threads, barrier.threads));
  barrier.threads = threads;
  Fiber &fiber = *block.running;
  barrier.arrived.push_back({&fiber, clock_of(fiber)});
  if (waits) {
    barrier.waiting.push_back(&fiber);
    fiber.state = WAITING;
  } else {
    advance_clock(fiber);
  }
  complete_if_all(barrier);
  static const char *const names[16] = {
      "a barrier of the block", "barrier 1", "barrier 2", "barrier 3", "barrier 4", "barrier 5", "barrier 6", "barrier 7",
      "barrier 8", "barrier 9", "barrier 10", "barrier 11", "barrier 12", "barrier 13", "barrier 14", "barrier 15"};
  if (fiber.state == WAITING) wait(names[number]);
}

void tw_emulated_warp(int operation, unsigned mask, void *arguments) {
  Fiber &fiber = *block.running;
  Warp &warp = block.warps[fiber.number / 32];
  const int lane = int(fiber.number % 32);
  if (!(mask >> lane & 1)) fault(format("lane %d calls a function of a warp with mask 0x%08x, which leaves it out", lane, mask));
  size_t place = 0;
  while (place < warp.meetings.size() && warp.meetings[place].mask != mask) ++place;
  if (place == warp.meetings.size()) warp.meetings.push_back({operation, mask, 0, {}});
  Meeting &meeting = warp.meetings[place];
  if (meeting.operation != operation)
    fault(format("lane %d is at %s while others of its warp are at %s", lane, operation_name(operation), operation_name(meeting.operation)));
  meeting.arguments[lane] = arguments;
  meeting.arrived |= 1u << lane;
  fiber.state = WAITING;
  complete_if_all(warp, place);
  if (fiber.state == WAITING) wait(operation_name(operation));
}

int tw_emulated_find(const char *name, int *parameter_count, unsigned *parameter_bytes) {
  for (const tw_emulated_kernel *kernel = tw_emulated_table; kernel->name; ++kernel) {
    if (std::strcmp(kernel->name, name)) continue;
    *parameter_count = kernel->parameter_count;
    std::copy(kernel->parameter_bytes, kernel->parameter_bytes + kernel->parameter_count, parameter_bytes);
    return 1;
  }
  return 0;
}

int tw_emulated_launch(const char *name, const unsigned grid[3], const unsigned block_size[3], unsigned long long shared_bytes,
                       void **parameters, const tw_emulated_range *ranges, unsigned long long range_count, char *message,
                       unsigned long long message_bytes) {
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> guard(one_at_a_time);
  const auto refuse = [&](const std::string &text) {
    snprintf(message, message_bytes, "%s", text.c_str());
    return TW_EMULATED_BAD_LAUNCH;
  };
  launch = Launch();
  for (const tw_emulated_kernel *kernel = tw_emulated_table; kernel->name; ++kernel)
    if (!std::strcmp(kernel->name, name)) launch.kernel = kernel;
  if (!launch.kernel) return refuse(format("no kernel %s", name));
  const unsigned long long threads = 1ull * block_size[0] * block_size[1] * block_size[2];
  if (threads < 1 || threads > 1024) return refuse(format("kernel %s: a block of %llu threads; it has 1 to 1024", name, threads));
  if (!grid[0] || !grid[1] || !grid[2]) return refuse(format("kernel %s: a grid without blocks", name));
  if (grid[0] > 2147483647u || grid[1] > 65535 || grid[2] > 65535) return refuse(format("kernel %s: too large a grid", name));
  if (shared_bytes > SHARED_LIMIT)
    return refuse(format("kernel %s: %llu bytes of shared memory; a block has %llu", name, shared_bytes, SHARED_LIMIT));
  launch.parameters = parameters;
  launch.shared_bytes = shared_bytes;
  start_launch(ranges, range_count);
  blockDim = {block_size[0], block_size[1], block_size[2]};
  gridDim = {grid[0], grid[1], grid[2]};
  for (unsigned z = 0; z < grid[2] && !launch.failed; ++z)
    for (unsigned y = 0; y < grid[1] && !launch.failed; ++y)
      for (unsigned x = 0; x < grid[0] && !launch.failed; ++x) {
        blockIdx = {x, y, z};
        run_block(block_size);
      }
  if (launch.failed) snprintf(message, message_bytes, "%s", launch.message.c_str());
  end_launch();
  return launch.failed ? TW_EMULATED_FAULT : TW_EMULATED_DONE;
}
}
