#include "fork_guard.hpp"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <array>
#include <mutex>
#include <utility>

#include "errors.hpp"

namespace beluga {

namespace detail {
std::atomic<std::uint64_t> fork_generation{0};
}

namespace {

constexpr int kFree = -1;
constexpr std::size_t kSlots = 1024;

// A flat table of atomics, since the child handler of a multi-threaded process may neither allocate
// nor lock. A slot holds fd + 1, so that the zero-initialised table is empty before any constructor
// has run.
std::array<std::atomic<int>, kSlots> registered{};
static_assert(std::atomic<int>::is_always_lock_free);

// Held from open() to registration, and across fork(): without it a fork in between would copy a
// descriptor that the child does not know it must close.
std::mutex opening;

void before_fork() { opening.lock(); }
void after_fork_in_parent() { opening.unlock(); }
void after_fork_in_child() {
  // Generation first: from here on every object of the parent knows that it is a copy.
  detail::fork_generation.fetch_add(1, std::memory_order_relaxed);
  for (auto& slot : registered) {
    int fd = slot.exchange(0, std::memory_order_relaxed) - 1;
    if (fd != kFree) ::close(fd);
  }
  opening.unlock();  // the forking thread locked it, and is the one thread of the child
}

const int installed = ::pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);

}  // namespace

void close_in_child(int fd) {
  if (fd < 0) throw Error(ErrorKind::invalid_argument, "close_in_child: not a file descriptor");
  if (installed != 0) {
    throw Error(ErrorKind::unsupported, "pthread_atfork failed: a forked child would keep locks");
  }
  for (auto& slot : registered) {
    int empty = 0;
    if (slot.compare_exchange_strong(empty, fd + 1, std::memory_order_relaxed)) return;
  }
  throw Error(ErrorKind::unsupported,
              "more than 1024 pool files and locks are open in this process: close some pools");
}

bool forget(int fd) noexcept {
  for (auto& slot : registered) {
    int expected = fd + 1;
    if (slot.compare_exchange_strong(expected, 0, std::memory_order_relaxed)) return true;
  }
  return false;
}

ProcessFd::ProcessFd(ProcessFd&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), generation_(other.generation_) {}

ProcessFd& ProcessFd::operator=(ProcessFd&& other) noexcept {
  if (this != &other) {
    reset();
    fd_ = std::exchange(other.fd_, -1);
    generation_ = other.generation_;
  }
  return *this;
}

ProcessFd::~ProcessFd() { reset(); }

ProcessFd ProcessFd::open(const char* path, int flags, mode_t mode) {
  std::lock_guard hold(opening);
  ProcessFd result;
  int fd = ::open(path, flags | O_CLOEXEC, mode);
  if (fd < 0) return result;
  try {
    close_in_child(fd);
  } catch (...) {
    ::close(fd);
    throw;
  }
  result.fd_ = fd;
  result.generation_ = fork_generation();
  return result;
}

int ProcessFd::get() const noexcept { return generation_ == fork_generation() ? fd_ : -1; }

void ProcessFd::reset() noexcept {
  int fd = std::exchange(fd_, -1);
  if (fd < 0 || generation_ != fork_generation()) return;
  // Under the lock, or a fork between the two calls would leave an open copy in the child.
  std::lock_guard hold(opening);
  forget(fd);
  ::close(fd);
}

}  // namespace beluga
