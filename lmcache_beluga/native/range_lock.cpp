#include "range_lock.hpp"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>
#include <string>
#include <thread>
#include <utility>

#include "errors.hpp"
#include "fork_guard.hpp"

namespace beluga {

namespace {

short lock_type(LockMode mode) { return mode == LockMode::shared ? F_RDLCK : F_WRLCK; }

struct flock describe(std::uint64_t byte, short type) {
  // The kernel computes start + length in a signed 64-bit number.
  if (byte >= static_cast<std::uint64_t>(std::numeric_limits<off_t>::max())) {
    throw Error(ErrorKind::invalid_argument, "lock byte " + std::to_string(byte) + " is too large");
  }
  struct flock lock {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(byte);
  lock.l_len = 1;
  return lock;  // l_pid stays 0: the kernel insists for OFD locks
}

[[noreturn]] void fail(int fd, int error) {
  std::string what = "cannot lock the pool file: ";
  if (fd < 0) {
    throw Error(ErrorKind::forked_handle,
                "the file is closed: this process was forked after attach, attach again in it");
  }
  if (error == EINVAL || error == ENOSYS || error == EOPNOTSUPP) {
    throw Error(ErrorKind::unsupported,
                what + "its file system has no open-file-description locks (" +
                    std::strerror(error) + "): use tmpfs, hugetlbfs or a local file system");
  }
  throw Error(ErrorKind::pool_io, what + std::strerror(error));
}

}  // namespace

bool try_lock(int fd, std::uint64_t byte, LockMode mode) {
  struct flock lock = describe(byte, lock_type(mode));
  if (fd >= 0 && ::fcntl(fd, F_OFD_SETLK, &lock) == 0) return true;
  int error = errno;
  if (fd >= 0 && (error == EAGAIN || error == EACCES || error == EINTR)) return false;
  fail(fd, error);
}

bool acquire(int fd, std::uint64_t byte, LockMode mode,
             std::chrono::steady_clock::time_point deadline) {
  using namespace std::chrono;
  // Polling, since F_OFD_SETLKW knows no timeout and a stopped holder must not stop us (G5).
  auto pause = duration_cast<steady_clock::duration>(microseconds(50));
  while (!try_lock(fd, byte, mode)) {
    auto now = steady_clock::now();
    if (now >= deadline) return false;
    std::this_thread::sleep_for(std::min(pause, deadline - now));
    pause = std::min<steady_clock::duration>(pause * 2, milliseconds(10));
  }
  return true;
}

void unlock(int fd, std::uint64_t byte) {
  struct flock lock = describe(byte, F_UNLCK);
  if (fd < 0 || ::fcntl(fd, F_OFD_SETLK, &lock) != 0) fail(fd, errno);
}

bool held_by_other(int fd, std::uint64_t byte, LockMode wanted) {
  struct flock lock = describe(byte, lock_type(wanted));
  if (fd < 0 || ::fcntl(fd, F_OFD_GETLK, &lock) != 0) fail(fd, errno);
  return lock.l_type != F_UNLCK;
}

RangeLock::RangeLock(int fd, std::uint64_t byte, LockMode mode) noexcept
    : fd_(fd), mode_(mode), byte_(byte), generation_(fork_generation()) {}

RangeLock::RangeLock(RangeLock&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      mode_(other.mode_),
      byte_(other.byte_),
      generation_(other.generation_) {}

RangeLock& RangeLock::operator=(RangeLock&& other) noexcept {
  if (this != &other) {
    release();
    fd_ = std::exchange(other.fd_, -1);
    mode_ = other.mode_;
    byte_ = other.byte_;
    generation_ = other.generation_;
  }
  return *this;
}

RangeLock::~RangeLock() { release(); }

std::optional<RangeLock> RangeLock::try_take(int fd, std::uint64_t byte, LockMode mode) {
  if (!try_lock(fd, byte, mode)) return std::nullopt;
  return RangeLock(fd, byte, mode);
}

std::optional<RangeLock> RangeLock::take(int fd, std::uint64_t byte, LockMode mode,
                                         std::chrono::steady_clock::time_point deadline) {
  if (!acquire(fd, byte, mode, deadline)) return std::nullopt;
  return RangeLock(fd, byte, mode);
}

bool RangeLock::held() const noexcept { return fd_ >= 0 && generation_ == fork_generation(); }

void RangeLock::downgrade() {
  if (!held()) throw Error(ErrorKind::forked_handle, "the lock is not held by this process");
  // A conversion to a weaker lock conflicts with nobody; false would be a spurious EINTR.
  for (int attempt = 0; attempt < 100; ++attempt) {
    if (try_lock(fd_, byte_, LockMode::shared)) {
      mode_ = LockMode::shared;
      return;
    }
  }
  throw Error(ErrorKind::pool_io, "cannot downgrade the lock on the pool file");
}

bool RangeLock::try_upgrade() {
  if (!held()) throw Error(ErrorKind::forked_handle, "the lock is not held by this process");
  if (!try_lock(fd_, byte_, LockMode::exclusive)) return false;
  mode_ = LockMode::exclusive;
  return true;
}

void RangeLock::release() noexcept {
  int fd = std::exchange(fd_, -1);
  if (fd < 0 || generation_ != fork_generation()) return;
  try {
    unlock(fd, byte_);
  } catch (...) {
    // The descriptor is gone, and the lock with it.
  }
}

}  // namespace beluga
