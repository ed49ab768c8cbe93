/* The simulated accelerator: plays the steps of a scheduled program on data, counts what moves, and traps on what must not be.
 *
 * A launch is generated code that is given the scratchpad and the constants, nothing else; memory.h shuts away what is not its operand.
 * Guarantees: before a launch every operand lies in values that are there, and what it stores to in no other operand; afterwards no other
 * byte has changed; a value that was fetched or spilled is stored over as a whole or not at all; values begin, end and are replaced outside
 * of control flow alone; a transfer stays within what it copies from and to. Whatever breaks that is a `trap` that names the step. Bytes and
 * cycles are counted as the steps happen, from nothing but the steps. Shares no code with what makes schedules or verifies programs.
 * Ownership: all pointers stay the caller's and live as long as a run. One run at a time for a machine; machines are independent.
 */
#ifndef TILEWRIGHT_SIMULATOR_ACCELERATOR_H
#define TILEWRIGHT_SIMULATOR_ACCELERATOR_H
#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "../abi.h"
#include "memory.h"
#include "timing.h"

namespace simulator {

/* Control flow is steps that go elsewhere: `repeat` begins a count that the `next` at the end of its steps continues, `unless` goes
 * on at another step where a bool in memory is false, `jump` always. */
enum class kind { fetch, spill, free, launch, reserve, repeat, next, unless, jump };
enum class space { input, output, constant, workspace };

/* Of a launch: where an operand lies while all counts are 0, and how far it moves with each count around the launch, outermost first. */
struct moving_operand {
  operand first;
  std::vector<int64_t> strides = {};
};

/* A transfer between (where, number, offset) and `address`; `bytes` that begin there, for launches to store to; a launch, by its number
 * among the launches of the program; a repeat as often as `number` says, downwards where `offset` is 1; a bool, the only operand, of the
 * constants where `number` is 1. What goes elsewhere goes to step `address`. */
struct step {
  kind what;
  space where;
  int64_t number, offset, address, bytes, cycles;
  std::vector<moving_operand> operands;
  std::string label;
};

struct machine_facts {
  std::string name;
  int64_t scratchpad_bytes, alignment, banks, transfer_bytes_per_cycle, transfer_latency, workspace_bytes;
};

struct chunk {
  uint8_t *data;
  int64_t bytes;
};

/* What generated code offers: csrc/abi.h, with `inputs[0]` the thread's own memory, `shapes[0]` the launch, `shapes[1]` and on the counts
 * around it, `workspace` the scratchpad. */
struct code {
  tw_thread_function thread;
  int64_t thread_bytes;
  const char *const *sites;
  int32_t site_count;
};

/* `read`: from off the chip; `compulsory`: an input or a constant for the first time, an output for the first time. `peak`: the highest
 * byte ever taken. */
struct account {
  int64_t read = 0, written = 0, compulsory = 0, peak = 0, transfers = 0, launches = 0, cycles = 0, computing = 0, transferring = 0;
};

struct trap : std::runtime_error {
  trap(const std::string &message, int32_t status) : std::runtime_error(message), status(status) {}
  int32_t status; /* a tw_status: of the launch that failed; TW_ERROR_ASSERT for what the machine itself found */
};

class machine {
 public:
  machine(const machine_facts &facts, const code &generated, std::vector<chunk> inputs, std::vector<chunk> outputs, chunk constants);
  account run(const std::vector<step> &steps);

 private:
  struct value {
    int64_t bytes, end;
    bool made, kept;
    moments when;
  };
  struct count {
    int64_t done, extent;
    bool down;
    int64_t now() const { return down ? extent - 1 - done : done; }
  };
  /* A value that an operand lies in; `over`: all of it is read and stored over, and it is another value behind the launch. */
  struct use {
    value *there;
    bool stored, over;
  };
  using place_key = std::tuple<space, int64_t, int64_t>;

  [[noreturn]] void fail(const std::string &message, int32_t status = TW_ERROR_ASSERT) const;
  chunk off_chip(const step &one) const;
  void place(int64_t address, int64_t bytes, bool made, int64_t ready);
  void fetch(const step &one);
  void spill(const step &one);
  void release(int64_t address);
  void reserve(int64_t address, int64_t bytes);
  void launch(const step &one);
  std::vector<operand> operands_now(const step &one) const;
  std::vector<use> find_operands(const std::vector<operand> &operands);
  void find_read(const operand &each, std::vector<use> &found);
  void find_stored(const operand &each, std::vector<use> &found);
  value *around(int64_t begin, int64_t end);
  void execute(const step &one, const std::vector<operand> &operands);
  size_t after_control(const step &one, size_t number);
  bool truth(const step &one);

  machine_facts facts_;
  code generated_;
  std::vector<chunk> inputs_, outputs_;
  chunk constants_;
  guarded_memory scratchpad_, thread_memory_;
  std::vector<uint8_t> workspace_;
  std::map<int64_t, value> values_; /* by address */
  std::map<place_key, int64_t> stored_;
  std::set<place_key> met_;
  std::vector<count> counts_;
  timing timing_;
  account account_;
  std::vector<bool> controlled_; /* of each step, whether it is within control flow */
  bool within_ = false;          /* whether the step that runs is */
  std::string where_;
};

}  // namespace simulator
#endif
