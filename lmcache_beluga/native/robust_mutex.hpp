#pragma once

#include <pthread.h>

#include <cstdint>

namespace beluga {

enum class LockResult { acquired, owner_died, timed_out };

/// A process-shared mutex in the control block that survives its holder.
///
/// A holder that was killed hands the lock to the next taker with `owner_died`: he repairs what it
/// protects and goes on. A holder that is stopped makes takers time out: a refused put, never a hang.
class RobustMutex {
 public:
  /// Makes the mutex anew; only while nobody else can reach it.
  void initialise() noexcept;
  [[nodiscard]] LockResult lock(std::uint32_t timeout_ms) noexcept;
  [[nodiscard]] LockResult try_lock() noexcept;
  void unlock() noexcept;

 private:
  pthread_mutex_t mutex_;
};

}  // namespace beluga
