#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <new>
#include <thread>
#include <vector>

#include "robust_mutex.hpp"
#include "scratch.hpp"

using namespace beluga;

namespace {

struct Shared {
  RobustMutex mutex;
  std::uint64_t counter;
};

Shared& shared() {
  void* memory =
      ::mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  CHECK(memory != MAP_FAILED);
  auto* made = new (memory) Shared{};
  made->mutex.initialise();
  return *made;
}

void one_holder_at_a_time() {
  Shared& s = shared();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        CHECK(s.mutex.lock(10'000) == LockResult::acquired);
        ++s.counter;  // a data race if two are in here
        s.mutex.unlock();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(s.counter, 8000u);
}

void a_held_lock_times_out() {
  Shared& s = shared();
  CHECK(s.mutex.try_lock() == LockResult::acquired);
  std::thread([&] {
    CHECK(s.mutex.try_lock() == LockResult::timed_out);
    const auto start = std::chrono::steady_clock::now();
    CHECK(s.mutex.lock(50) == LockResult::timed_out);
    CHECK(std::chrono::steady_clock::now() - start >= std::chrono::milliseconds(50));
    CHECK(s.mutex.lock(0) == LockResult::timed_out);
  }).join();
  s.mutex.unlock();
  CHECK(s.mutex.lock(50) == LockResult::acquired);
  s.mutex.unlock();
}

void a_dead_holder_is_told_of_once() {
  Shared& s = shared();
  for (int i = 0; i < 3; ++i) {
    const int status = scratch::in_child([&] {
      CHECK(s.mutex.lock(1000) == LockResult::acquired);
      ::kill(::getpid(), SIGKILL);
    });
    CHECK(WIFSIGNALED(status));
    CHECK((i % 2 ? s.mutex.try_lock() : s.mutex.lock(1000)) == LockResult::owner_died);
    s.mutex.unlock();
    CHECK(s.mutex.lock(1000) == LockResult::acquired);
    s.mutex.unlock();
  }
}

/// Who waits when the holder dies gets the lock, and is told.
void a_waiter_inherits() {
  Shared& s = shared();
  int pipe_fds[2];
  CHECK(::pipe(pipe_fds) == 0);
  const pid_t holder = ::fork();
  if (holder == 0) {
    const bool held = s.mutex.lock(1000) == LockResult::acquired;
    CHECK(::write(pipe_fds[1], &held, 1) == 1);
    for (;;) ::pause();
  }
  bool held = false;
  CHECK(::read(pipe_fds[0], &held, 1) == 1 && held);
  std::thread killer([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    ::kill(holder, SIGKILL);
  });
  CHECK(s.mutex.lock(30'000) == LockResult::owner_died);
  s.mutex.unlock();
  killer.join();
  int status = 0;
  CHECK(::waitpid(holder, &status, 0) == holder);
}

}  // namespace

int main() {
  one_holder_at_a_time();
  a_held_lock_times_out();
  a_dead_holder_is_told_of_once();
  a_waiter_inherits();
}
