#pragma once

#include <atomic>
#include <mutex>
#include <string>

namespace beluga {

/// Whether a handle has been closed, and why: for good, and for the first reason.
class Closure {
 public:
  static constexpr const char* kTruncated =
      "the pool's storage is gone (truncated, removed from a full file system, or poisoned): everything in it is a "
      "miss; format the pool and restart";
  static constexpr const char* kFormatted =
      "the pool was formatted anew while it was attached: everything in it is a miss; attach again";
  static constexpr const char* kTakenOver =
      "another machine has taken this host id over: everything is a miss; give every machine its own beluga.host_id";
  static constexpr const char* kRetired = "this host was retired: attach again to have it join anew";
  static constexpr const char* kClosed = "the pool was closed";

  void shut(const char* reason) {
    const std::lock_guard guard(mutex_);
    if (shut_.load(std::memory_order_acquire)) return;
    reason_ = reason;
    shut_.store(true, std::memory_order_release);
  }
  bool is_shut() const noexcept { return shut_.load(std::memory_order_acquire); }
  std::string reason() const {
    const std::lock_guard guard(mutex_);
    return reason_;
  }

 private:
  std::atomic<bool> shut_{false};
  mutable std::mutex mutex_;
  std::string reason_;
};

}  // namespace beluga
