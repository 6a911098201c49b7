#include "robust_mutex.hpp"

#include <cerrno>
#include <ctime>

namespace beluga {
namespace {

LockResult result_of(int rc, pthread_mutex_t& mutex) noexcept {
  if (rc == 0) return LockResult::acquired;
  if (rc == EOWNERDEAD) {
    pthread_mutex_consistent(&mutex);
    return LockResult::owner_died;
  }
  return LockResult::timed_out;
}

}  // namespace

void RobustMutex::initialise() noexcept {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&mutex_, &attributes);
  pthread_mutexattr_destroy(&attributes);
}

LockResult RobustMutex::lock(std::uint32_t timeout_ms) noexcept {
  const int rc = pthread_mutex_trylock(&mutex_);
  if (rc != EBUSY) return result_of(rc, mutex_);
#ifdef __SANITIZE_THREAD__
  // ThreadSanitizer does not know pthread_mutex_clocklock, and would take what it guards for unguarded.
  const timespec pause{0, 100'000};
  for (std::uint32_t waited = 0; waited < timeout_ms * 10; ++waited) {
    nanosleep(&pause, nullptr);
    const LockResult result = try_lock();
    if (result != LockResult::timed_out) return result;
  }
  return LockResult::timed_out;
#else
  timespec until{};
  clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_sec += timeout_ms / 1000;
  until.tv_nsec += static_cast<long>(timeout_ms % 1000) * 1'000'000;
  if (until.tv_nsec >= 1'000'000'000) {
    until.tv_nsec -= 1'000'000'000;
    ++until.tv_sec;
  }
  return result_of(pthread_mutex_clocklock(&mutex_, CLOCK_MONOTONIC, &until), mutex_);
#endif
}

LockResult RobustMutex::try_lock() noexcept {
  return result_of(pthread_mutex_trylock(&mutex_), mutex_);
}

void RobustMutex::unlock() noexcept { pthread_mutex_unlock(&mutex_); }

}  // namespace beluga
