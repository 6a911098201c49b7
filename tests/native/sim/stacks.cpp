#include "stacks.hpp"

#include <sys/mman.h>

#include <new>

namespace sim {

namespace {

constexpr std::size_t kGuard = 4096;
thread_local std::vector<void*> unused;

}  // namespace

boost::context::stack_context Stacks::take() {
  void* memory = nullptr;
  if (unused.empty()) {
    memory = mmap(nullptr, kBytes + kGuard, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) throw std::bad_alloc();
  } else {
    memory = unused.back();
    unused.pop_back();
  }
  boost::context::stack_context stack;
  stack.size = kBytes;
  stack.sp = static_cast<char*>(memory) + kGuard + kBytes;
  return stack;
}

void Stacks::give_back(const boost::context::stack_context& stack) {
  unused.push_back(static_cast<char*>(stack.sp) - kBytes - kGuard);
}

}  // namespace sim
