#include "trap.h"

#include <csetjmp>
#include <csignal>
#include <mutex>

namespace simulator {

namespace {

struct escape {
  sigjmp_buf back;
  volatile uintptr_t address;
};

thread_local escape *volatile inside = nullptr; /* volatile: the handler reads it */
std::mutex installing;
int users = 0;
struct sigaction before_segv, before_bus;

void on_fault(int number, siginfo_t *info, void *context) {
  escape *here = inside;
  if (here != nullptr) {
    here->address = reinterpret_cast<uintptr_t>(info->si_addr);
    siglongjmp(here->back, 1);
  }
  struct sigaction &before = number == SIGSEGV ? before_segv : before_bus;
  if ((before.sa_flags & SA_SIGINFO) != 0 && before.sa_sigaction != nullptr) {
    before.sa_sigaction(number, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(number);
  } else { /* the access happens again, and ends the process */
    signal(number, SIG_DFL);
  }
}

void install() {
  std::lock_guard<std::mutex> lock(installing);
  if (users++ > 0) return;
  struct sigaction ours = {};
  ours.sa_sigaction = on_fault;
  ours.sa_flags = SA_SIGINFO | SA_NODEFER | SA_ONSTACK;
  sigemptyset(&ours.sa_mask);
  sigaction(SIGSEGV, &ours, &before_segv);
  sigaction(SIGBUS, &ours, &before_bus);
}

void uninstall() {
  std::lock_guard<std::mutex> lock(installing);
  if (--users > 0) return;
  sigaction(SIGSEGV, &before_segv, nullptr);
  sigaction(SIGBUS, &before_bus, nullptr);
}

}  // namespace

outcome run_trapped(int32_t (*body)(void *), void *argument) {
  static thread_local escape here; /* not on the stack, whose values a jump may lose */
  install();
  outcome result = {false, 0, 0};
  if (sigsetjmp(here.back, 1) == 0) {
    inside = &here;
    result.status = body(argument);
    inside = nullptr;
  } else {
    inside = nullptr;
    result.faulted = true;
    result.address = here.address;
  }
  uninstall();
  return result;
}

}  // namespace simulator
