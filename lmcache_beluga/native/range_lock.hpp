#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

namespace beluga {

/// Locks on single bytes of a file, owned by the *open file description* behind a descriptor
/// (F_OFD_SETLK). The kernel releases them when the last descriptor of that description is closed,
/// so a killed process leaves none behind; use a ProcessFd, or a forked child would keep them.
/// Two descriptors from two open() calls exclude each other, also within one process. Asking again
/// through the same description never conflicts: it converts the lock. The byte may lie past the
/// end of the file; nothing is read or written. Bytes run from 0 to 2^63 - 2.
///
/// All functions throw `forked_handle` for a descriptor of -1 (what ProcessFd gives in a child),
/// `unsupported` where the file system has no such locks, `pool_io` for anything else.
enum class LockMode { shared, exclusive };

/// Take the lock, or convert the one held; false when another holder conflicts. Never waits.
bool try_lock(int fd, std::uint64_t byte, LockMode mode);
inline bool try_shared(int fd, std::uint64_t byte) { return try_lock(fd, byte, LockMode::shared); }
inline bool try_exclusive(int fd, std::uint64_t byte) {
  return try_lock(fd, byte, LockMode::exclusive);
}

/// Polls with back-off (50 us doubling to 10 ms) until the lock is held or `deadline` has passed;
/// false then. Tries at least once.
bool acquire(int fd, std::uint64_t byte, LockMode mode,
             std::chrono::steady_clock::time_point deadline);
inline bool acquire_exclusive(int fd, std::uint64_t byte,
                              std::chrono::steady_clock::time_point deadline) {
  return acquire(fd, byte, LockMode::exclusive, deadline);
}

/// Releases the byte; nothing happens when it was not held.
void unlock(int fd, std::uint64_t byte);

/// Does another description hold a lock that conflicts with `wanted`? With the default: any lock at
/// all. It may be gone, or a new one taken, by the time this returns.
bool held_by_other(int fd, std::uint64_t byte, LockMode wanted = LockMode::exclusive);

/// A held lock, released at destruction. The descriptor must outlive it. In a forked child it does
/// nothing: the description is shared there, and an unlock would take the parent's lock away.
class RangeLock {
 public:
  RangeLock() = default;
  RangeLock(RangeLock&& other) noexcept;
  RangeLock& operator=(RangeLock&& other) noexcept;
  RangeLock(const RangeLock&) = delete;
  RangeLock& operator=(const RangeLock&) = delete;
  ~RangeLock();

  /// Empty when another holder conflicts.
  static std::optional<RangeLock> try_take(int fd, std::uint64_t byte, LockMode mode);
  /// Empty when `deadline` passed first.
  static std::optional<RangeLock> take(int fd, std::uint64_t byte, LockMode mode,
                                       std::chrono::steady_clock::time_point deadline);

  /// True while this object holds the lock, in the process that took it.
  bool held() const noexcept;
  LockMode mode() const noexcept { return mode_; }
  /// From exclusive to shared without a moment in between; cannot fail for lack of the lock.
  void downgrade();
  /// From shared to exclusive; false, and still shared, when somebody else holds a share.
  bool try_upgrade();
  /// Releases now.
  void release() noexcept;

 private:
  RangeLock(int fd, std::uint64_t byte, LockMode mode) noexcept;

  int fd_ = -1;
  LockMode mode_ = LockMode::shared;
  std::uint64_t byte_ = 0;
  std::uint64_t generation_ = 0;
};

}  // namespace beluga
