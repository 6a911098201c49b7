#include "crash_report.hpp"

#include <sys/mman.h>

#include <cinttypes>
#include <csignal>
#include <cstdio>

#include "world.hpp"

namespace sim {

namespace {

thread_local constinit bool reporting = false;
thread_local constinit bool ready_here = false;

void report(int number, siginfo_t* info, void*) {
  std::signal(number, SIG_DFL);
  if (World::alive() && !reporting) {
    reporting = true;
    World& world = World::now();
    std::fprintf(stderr, "\nthe last events of the world of seed %" PRIu64 ":\n", world.seed());
    world.print_trace(stderr);
    const Fiber* fiber = world.running();
    if (number == SIGSEGV &&
        world.device_memory().contains(reinterpret_cast<std::uintptr_t>(info->si_addr))) {
      std::fprintf(stderr, "device memory at offset 0x%" PRIx64 " was accessed past the machine\n",
                   world.offset(info->si_addr));
    }
    std::fprintf(stderr, "%s in %s, seed %" PRIu64 "\n",
                 number == SIGSEGV ? "segmentation fault" : "abort",
                 fiber ? fiber->name.c_str() : "no fiber", world.seed());
  }
  std::raise(number);
}

}  // namespace

void report_crashes() {
  if (ready_here) return;
  ready_here = true;
  constexpr std::size_t kBytes = 256 * 1024;
  stack_t stack{};
  stack.ss_sp = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  stack.ss_size = kBytes;
  sigaltstack(&stack, nullptr);
  struct sigaction action {};
  action.sa_sigaction = report;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigaction(SIGABRT, &action, nullptr);
  sigaction(SIGSEGV, &action, nullptr);
}

}  // namespace sim
