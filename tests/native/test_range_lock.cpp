#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <string>
#include <thread>

#include "check.hpp"
#include "fork_guard.hpp"
#include "range_lock.hpp"
#include "scratch.hpp"

using namespace beluga;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

namespace {

ProcessFd open_file(const std::string& path) {
  ProcessFd fd = ProcessFd::open(path.c_str(), O_RDWR | O_CREAT, 0600);
  CHECK(fd.valid());
  return fd;
}

void excludes_other_descriptions(const std::string& path) {
  ProcessFd a = open_file(path);
  ProcessFd b = open_file(path);
  constexpr std::uint64_t kFar = std::uint64_t{1} << 43;  // past the end: 8 TiB
  for (std::uint64_t byte : {std::uint64_t{0}, kFar}) {
    CHECK(try_exclusive(a.get(), byte));
    CHECK(try_exclusive(a.get(), byte));  // own lock: no conflict
    CHECK(!try_exclusive(b.get(), byte));
    CHECK(!try_shared(b.get(), byte));
    CHECK(held_by_other(b.get(), byte));
    CHECK(!held_by_other(a.get(), byte));
    CHECK(try_exclusive(b.get(), byte + 1));  // another byte
    unlock(b.get(), byte + 1);
    CHECK(try_shared(a.get(), byte));  // converts
    CHECK(try_shared(b.get(), byte));
    CHECK(held_by_other(b.get(), byte));
    CHECK(!held_by_other(b.get(), byte, LockMode::shared));
    CHECK(!try_exclusive(b.get(), byte));
    unlock(a.get(), byte);
    CHECK(try_exclusive(b.get(), byte));
    unlock(b.get(), byte);
    unlock(b.get(), byte);  // not held: nothing happens
    CHECK(!held_by_other(a.get(), byte));
  }
  CHECK_THROWS_KIND(try_shared(a.get(), ~std::uint64_t{0}), ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(try_shared(-1, 0), ErrorKind::forked_handle);
}

void waits_no_longer_than_told(const std::string& path) {
  ProcessFd a = open_file(path);
  ProcessFd b = open_file(path);
  CHECK(try_exclusive(a.get(), 7));
  auto deadline = Clock::now() + milliseconds(20);
  CHECK(!acquire_exclusive(b.get(), 7, deadline));
  CHECK(Clock::now() >= deadline);
  std::thread releaser([&] {
    std::this_thread::sleep_for(milliseconds(20));
    unlock(a.get(), 7);
  });
  CHECK(acquire_exclusive(b.get(), 7, Clock::now() + std::chrono::seconds(60)));
  releaser.join();
  CHECK(!try_shared(a.get(), 7));
}

void lock_objects(const std::string& path) {
  ProcessFd a = open_file(path);
  ProcessFd b = open_file(path);
  {
    auto lock = RangeLock::try_take(a.get(), 3, LockMode::exclusive);
    CHECK(lock && lock->held());
    CHECK(!RangeLock::try_take(b.get(), 3, LockMode::shared));
    CHECK(!RangeLock::take(b.get(), 3, LockMode::shared, Clock::now() + milliseconds(2)));
    lock->downgrade();
    auto other = RangeLock::try_take(b.get(), 3, LockMode::shared);
    CHECK(other.has_value());
    CHECK(!lock->try_upgrade());
    CHECK(lock->mode() == LockMode::shared);
    other->release();
    CHECK(!other->held());
    CHECK(lock->try_upgrade());
    RangeLock moved = std::move(*lock);
    CHECK(moved.held() && !lock->held());
    lock.reset();
    CHECK(held_by_other(b.get(), 3));
  }
  CHECK(!held_by_other(b.get(), 3));
}

/// Starts a child that says when it is ready and then sleeps until it is killed.
template <typename Body>
pid_t start_sleeper(Body body) {
  std::array<int, 2> ready{};
  CHECK(::pipe(ready.data()) == 0);
  pid_t child = ::fork();
  CHECK(child >= 0);
  if (child == 0) {
    body();
    CHECK(::write(ready[1], "x", 1) == 1);
    for (;;) ::pause();
  }
  char byte = 0;
  ::close(ready[1]);
  CHECK(::read(ready[0], &byte, 1) == 1);
  ::close(ready[0]);
  return child;
}

void kill_and_reap(pid_t child) {
  CHECK(::kill(child, SIGKILL) == 0);
  CHECK(::waitpid(child, nullptr, 0) == child);
}

void death_releases(const std::string& path) {
  ProcessFd a = open_file(path);
  pid_t child = start_sleeper([&] {
    static ProcessFd own = open_file(path);
    CHECK(try_exclusive(own.get(), 1));
  });
  CHECK(held_by_other(a.get(), 1));
  CHECK(!try_exclusive(a.get(), 1));
  kill_and_reap(child);
  CHECK(try_exclusive(a.get(), 1));
}

void child_does_not_keep_the_locks_of_its_parent(const std::string& path) {
  ProcessFd observer = open_file(path);
  // The grandchild outlives its parent, which holds the lock.
  std::array<int, 2> pids{};
  CHECK(::pipe(pids.data()) == 0);
  pid_t holder = start_sleeper([&] {
    static ProcessFd own = open_file(path);
    CHECK(try_exclusive(own.get(), 9));
    pid_t grandchild = start_sleeper([] {});
    CHECK(::write(pids[1], &grandchild, sizeof grandchild) == sizeof grandchild);
  });
  pid_t grandchild = 0;
  CHECK(::read(pids[0], &grandchild, sizeof grandchild) == sizeof grandchild);
  ::close(pids[0]);
  ::close(pids[1]);
  CHECK(held_by_other(observer.get(), 9));
  kill_and_reap(holder);
  CHECK(::kill(grandchild, 0) == 0);
  CHECK(!held_by_other(observer.get(), 9));
  CHECK(::kill(grandchild, SIGKILL) == 0);
}

void forked_copy_is_dead(const std::string& path) {
  ProcessFd fd = open_file(path);
  ProcessFd observer = open_file(path);
  int number = fd.get();
  auto lock = RangeLock::try_take(number, 5, LockMode::exclusive);
  std::uint64_t generation = fork_generation();
  int status = scratch::in_child([&] {
    CHECK_EQ(fork_generation(), generation + 1);
    CHECK(::fcntl(number, F_GETFD) == -1);
    CHECK(fd.inherited() && !fd.valid() && fd.get() == -1);
    CHECK(!lock->held());
    // The number now belongs to another file, which the dead objects must leave alone.
    int fresh = ::open(path.c_str(), O_RDWR);
    while (fresh < number) fresh = ::open(path.c_str(), O_RDWR);
    CHECK_EQ(fresh, number);
    lock.reset();
    fd.reset();
    CHECK(::fcntl(number, F_GETFD) != -1);
    CHECK(held_by_other(fresh, 5));
    // A grandchild counts on, and objects made here work.
    ProcessFd own = open_file(path);
    CHECK(try_shared(own.get(), 6));
    CHECK(scratch::succeeded(scratch::in_child([&] {
      CHECK_EQ(fork_generation(), generation + 2);
      CHECK(!own.valid());
    })));
    CHECK(own.valid());
  });
  CHECK(scratch::succeeded(status));
  CHECK_EQ(fork_generation(), generation);
  CHECK(lock->held());
  CHECK(held_by_other(observer.get(), 5));
}

void registration(const std::string& path) {
  int fd = ::open(path.c_str(), O_RDWR);
  CHECK(!forget(fd));
  close_in_child(fd);
  CHECK(scratch::succeeded(scratch::in_child([&] { CHECK(::fcntl(fd, F_GETFD) == -1); })));
  CHECK(forget(fd));
  CHECK(!forget(fd));
  CHECK(scratch::succeeded(scratch::in_child([&] { CHECK(::fcntl(fd, F_GETFD) != -1); })));
  ::close(fd);
  CHECK_THROWS_KIND(close_in_child(-1), ErrorKind::invalid_argument);
  // Numbers far above any open file: the table is what is tested.
  for (int i = 0; i < 1024; ++i) close_in_child(1'000'000 + i);
  CHECK_THROWS_KIND(close_in_child(2'000'000), ErrorKind::unsupported);
  for (int i = 0; i < 1024; ++i) CHECK(forget(1'000'000 + i));
}

}  // namespace

int main() {
  return scratch::run([](const std::string& directory) {
    excludes_other_descriptions(directory + "/a");
    waits_no_longer_than_told(directory + "/b");
    lock_objects(directory + "/c");
    death_releases(directory + "/d");
    child_does_not_keep_the_locks_of_its_parent(directory + "/e");
    forked_copy_is_dead(directory + "/f");
    registration(directory + "/a");
  });
}
