#pragma once

#include <cstdint>

namespace beluga {

/// An eventfd: a descriptor that becomes readable when something is signalled, for poll() in another thread.
class EventFd {
 public:
  /// Throws Error(pool_io) when the process has no descriptors left.
  EventFd();
  ~EventFd();
  EventFd(const EventFd&) = delete;
  EventFd& operator=(const EventFd&) = delete;

  [[nodiscard]] int fd() const noexcept { return fd_; }
  /// Makes it readable. Never waits: a counter that nobody reads is readable already.
  void signal() const noexcept;

 private:
  int fd_;
};

}  // namespace beluga
