#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>

namespace beluga {

namespace detail {
extern std::atomic<std::uint64_t> fork_generation;
}

/// Number of forks between this process and the one that loaded the library. An object that belongs
/// to one process remembers the value it was made under; a different value later means that the
/// caller is a forked child and its handle is dead. One relaxed load: cheap enough for every call.
inline std::uint64_t fork_generation() noexcept {
  return detail::fork_generation.load(std::memory_order_relaxed);
}

/// Has every child forked from now on close `fd` before it runs anything else. An open file
/// description is shared across fork, so without this a child would keep the parent's OFD locks
/// alive after the parent has died. Throws `unsupported` when 1024 descriptors are registered.
void close_in_child(int fd);

/// Undoes close_in_child(); call it before the descriptor is closed, for its number is then reused.
/// False when `fd` was not registered.
bool forget(int fd) noexcept;

/// Owns a file descriptor that belongs to this process alone: registered with close_in_child(), and
/// never touched again in a forked child, where its number may by then mean another file.
class ProcessFd {
 public:
  ProcessFd() = default;
  ProcessFd(ProcessFd&& other) noexcept;
  ProcessFd& operator=(ProcessFd&& other) noexcept;
  ProcessFd(const ProcessFd&) = delete;
  ProcessFd& operator=(const ProcessFd&) = delete;
  ~ProcessFd();

  /// open(2) with O_CLOEXEC, in one step with the registration as seen by fork. On failure the
  /// result is invalid and errno says why.
  static ProcessFd open(const char* path, int flags, mode_t mode = 0);

  /// The descriptor; -1 when there is none, and in a forked child.
  int get() const noexcept;
  bool valid() const noexcept { return get() >= 0; }
  /// True in a forked child of the process that opened it.
  bool inherited() const noexcept { return fd_ >= 0 && generation_ != fork_generation(); }
  /// Closes it now; does nothing in a forked child.
  void reset() noexcept;

 private:
  int fd_ = -1;
  std::uint64_t generation_ = 0;
};

}  // namespace beluga
