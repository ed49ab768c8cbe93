/* Runs generated code and survives a fault of its memory accesses.
 *
 * Assumes that the code holds no lock and has no destructors: a fault leaves it by a jump. While any thread is inside, the process's
 * handler of SIGSEGV and SIGBUS is ours; faults of other threads go on to the one before. Safe from any thread.
 */
#ifndef TILEWRIGHT_SIMULATOR_TRAP_H
#define TILEWRIGHT_SIMULATOR_TRAP_H
#include <cstdint>

namespace simulator {

struct outcome {
  bool faulted;
  uintptr_t address; /* that was accessed; 0 where the machine does not say */
  int32_t status;
};

outcome run_trapped(int32_t (*body)(void *), void *argument);

}  // namespace simulator
#endif
