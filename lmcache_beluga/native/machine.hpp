#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>

#include "clock.hpp"
#include "robust_mutex.hpp"
#include "sync_point.hpp"

namespace beluga {

/// What the protocols need of the machine besides memory: clocks, and locks among the processes and threads of
/// one host. A visibility policy is built on a machine, so that a simulator can be one.
struct NativeMachine {
  using Mutex = std::mutex;

  /// Milliseconds of a clock that the processes of this host share; see boot_ms().
  static std::uint64_t now_ms() noexcept { return boot_ms(); }
  static void sleep_us(std::uint32_t us) noexcept { std::this_thread::sleep_for(std::chrono::microseconds(us)); }

  static LockResult lock(RobustMutex& mutex, std::uint32_t timeout_ms) noexcept {
    return timeout_ms ? mutex.lock(timeout_ms) : mutex.try_lock();
  }
  static void unlock(RobustMutex& mutex) noexcept { mutex.unlock(); }

  /// Starts to fetch a line. Whether and when it comes is nobody's business: never a means of freshness.
  static void prefetch(const void* line) noexcept { __builtin_prefetch(line); }

  /// Is this step of this point carried out? Only a test build can say no.
  static constexpr bool on(Point, Step) noexcept { return true; }
};

}  // namespace beluga
