#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "bus_guard.hpp"
#include "check.hpp"
#include "mapping.hpp"
#include "scratch.hpp"

using namespace beluga;

namespace {

constexpr std::uint64_t kPage = 4096;

unsigned char load(const Mapping& mapping, std::uint64_t offset) {
  return *reinterpret_cast<const volatile unsigned char*>(mapping.base() + offset);
}

void store(const Mapping& mapping, std::uint64_t offset, unsigned char value) {
  *reinterpret_cast<volatile unsigned char*>(mapping.base() + offset) = value;
}

std::shared_ptr<Mapping> make(const std::string& path, std::uint64_t size) {
  auto file = PoolFile::create(path, size);
  CHECK(file.has_value());
  return Mapping::map(std::move(*file));
}

/// A page past the end of a file, that no guard knows of.
volatile unsigned char* unguarded_hole(const std::string& path) {
  int fd = ::open(path.c_str(), O_RDWR | O_CREAT, 0600);
  CHECK(fd >= 0);
  void* page = ::mmap(nullptr, kPage, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(page != MAP_FAILED);
  ::close(fd);
  return static_cast<volatile unsigned char*>(page);
}

void truncated_file_reads_zero(const std::string& path) {
  auto mapping = make(path, 16 * kPage);
  auto other = make(path + ".other", 16 * kPage);
  store(*mapping, 0, 1);
  store(*mapping, 8 * kPage, 2);
  store(*other, 0, 3);
  CHECK(!mapping->faulted());
  CHECK(::truncate(path.c_str(), 4 * kPage) == 0);
  CHECK_EQ(mapping->file().current_size(), 4 * kPage);
  CHECK(!mapping->faulted());
  errno = 77;
  CHECK_EQ(load(*mapping, 8 * kPage + 5), 0);
  CHECK_EQ(errno, 77);
  CHECK(mapping->faulted());
  CHECK_EQ(load(*mapping, 0), 1);  // what is still there stays
  store(*mapping, 15 * kPage, 9);  // a store survives too, seen by nobody else
  CHECK_EQ(load(*mapping, 15 * kPage), 9);
  CHECK(!other->faulted());
  CHECK_EQ(load(*other, 0), 3);
  CHECK_EQ(::access(path.c_str(), F_OK), 0);
  CHECK(::truncate(path.c_str(), 16 * kPage) == 0);
  CHECK(mapping->faulted());  // for good
}

void large_truncated_copy_from_many_threads(const std::string& path) {
  constexpr std::uint64_t kSize = 64U << 20U;  // 16,384 pages, more than are replaced one by one
  auto mapping = make(path, kSize);
  CHECK(::truncate(path.c_str(), 0) == 0);
  std::vector<std::thread> threads;
  std::atomic<std::uint64_t> nonzero{0};
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      // Every second page, so that neighbouring zero pages do not merge.
      for (std::uint64_t at = t * 2 * kPage; at < kSize; at += 8 * kPage) {
        nonzero += load(*mapping, at);
      }
    });
  }
  for (auto& thread : threads) thread.join();
  CHECK_EQ(nonzero.load(), 0U);
  CHECK(mapping->faulted());
}

void child_is_guarded_too(const std::string& path) {
  auto mapping = make(path, 4 * kPage);
  store(*mapping, 0, 5);
  int status = scratch::in_child([&] {
    CHECK_EQ(load(*mapping, 0), 5);  // stays mapped
    CHECK(::truncate(path.c_str(), 0) == 0);
    CHECK_EQ(load(*mapping, 0), 0);
    CHECK(mapping->faulted());
    CHECK_THROWS_KIND(mapping->file().current_size(), ErrorKind::forked_handle);
    mapping.reset();
  });
  CHECK(scratch::succeeded(status));
  CHECK(!mapping->faulted());  // each process for itself
}

void unrelated_faults_kill_as_before(const std::string& path) {
  auto mapping = make(path, 4 * kPage);
  int status = scratch::in_child([&] {
    ::signal(SIGBUS, SIG_DFL);  // sanitizers and test runners leave handlers of their own
    auto guarded = make(path + ".mine", 4 * kPage);
    *unguarded_hole(path + ".hole") = 1;
  });
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
  status = scratch::in_child([&] {
    ::signal(SIGBUS, SIG_DFL);
    auto guarded = make(path + ".mine2", 4 * kPage);
    ::kill(::getpid(), SIGBUS);
  });
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
  // A mapping that is gone is guarded no longer.
  status = scratch::in_child([&] {
    ::signal(SIGBUS, SIG_DFL);
    volatile unsigned char* hole = unguarded_hole(path + ".hole");
    { BusGuard guard(const_cast<unsigned char*>(hole), kPage, kPage); }
    *hole = 1;
  });
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

volatile sig_atomic_t calls = 0;
sigjmp_buf escape;
void plain_handler(int) { calls = calls + 1; }
void jumping_handler(int, siginfo_t*, void*) {
  calls = calls + 1;
  ::siglongjmp(escape, 1);
}
struct sigaction beneath {};
void chaining_handler(int signal, siginfo_t* info, void* context) {
  calls = calls + 1;
  if (calls > 10) ::_exit(9);
  beneath.sa_sigaction(signal, info, context);
}

void earlier_handlers_are_called(const std::string& path) {
  int status = scratch::in_child([&] {
    ::signal(SIGBUS, plain_handler);
    auto guarded = make(path + ".plain", 4 * kPage);
    ::raise(SIGBUS);
    CHECK_EQ(calls, 1);
    CHECK(!guarded->faulted());
    CHECK(::truncate((path + ".plain").c_str(), 0) == 0);
    CHECK_EQ(load(*guarded, 0), 0);
    CHECK_EQ(calls, 1);
  });
  CHECK(scratch::succeeded(status));
  status = scratch::in_child([&] {
    struct sigaction action {};
    action.sa_sigaction = jumping_handler;
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGBUS, &action, nullptr);
    auto guarded = make(path + ".info", 4 * kPage);
    volatile unsigned char* hole = unguarded_hole(path + ".hole");
    if (sigsetjmp(escape, 1) == 0) *hole = 1;
    CHECK_EQ(calls, 1);
  });
  CHECK(scratch::succeeded(status));
  status = scratch::in_child([&] {
    ::signal(SIGBUS, SIG_IGN);
    auto guarded = make(path + ".ignore", 4 * kPage);
    ::raise(SIGBUS);
    *unguarded_hole(path + ".hole") = 1;  // ignored or not, a fault kills
  });
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

void handler_put_on_top_later(const std::string& path) {
  int status = scratch::in_child([&] {
    ::signal(SIGBUS, SIG_DFL);
    auto first = make(path + ".first", 4 * kPage);
    struct sigaction action {};
    action.sa_sigaction = chaining_handler;
    action.sa_flags = SA_SIGINFO;
    ::sigaction(SIGBUS, &action, &beneath);
    auto second = make(path + ".second", 4 * kPage);  // puts ours back on top
    CHECK(::truncate((path + ".second").c_str(), 0) == 0);
    CHECK_EQ(load(*second, 0), 0);
    CHECK_EQ(calls, 0);
    // Each of the two handlers believes that the other one is next: this must end.
    *unguarded_hole(path + ".hole") = 1;
  });
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

void table_is_bounded_and_reused(const std::string& path) {
  auto mapping = make(path, 4 * kPage);
  std::vector<std::unique_ptr<BusGuard>> guards;
  void* base = mapping->base();
  for (int i = 0; i < 255; ++i) guards.push_back(std::make_unique<BusGuard>(base, kPage, kPage));
  CHECK_THROWS_KIND(BusGuard(base, kPage, kPage), ErrorKind::unsupported);
  CHECK_THROWS_KIND(Mapping::map(PoolFile::open_existing(path)), ErrorKind::unsupported);
  guards.clear();
  for (int i = 0; i < 1000; ++i) BusGuard(base, kPage, kPage);
  CHECK_THROWS_KIND(BusGuard(mapping->base() + 1, kPage, kPage), ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(BusGuard(base, 0, kPage), ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(BusGuard(base, kPage, 100), ErrorKind::invalid_argument);
}

void guards_come_and_go_while_others_fault(const std::string& path) {
  auto steady = make(path, 4096 * kPage);
  CHECK(::truncate(path.c_str(), 0) == 0);
  std::atomic<bool> stop{false};
  std::thread churn([&] {
    while (!stop) BusGuard(steady->base(), kPage, kPage);
  });
  for (std::uint64_t page = 1; page < 900; ++page) CHECK_EQ(load(*steady, page * kPage * 2), 0);
  stop = true;
  churn.join();
  CHECK(steady->faulted());
}

}  // namespace

int main() {
  return scratch::run([](const std::string& directory) {
    truncated_file_reads_zero(directory + "/truncated");
    large_truncated_copy_from_many_threads(directory + "/large");
    child_is_guarded_too(directory + "/child");
    unrelated_faults_kill_as_before(directory + "/unrelated");
    earlier_handlers_are_called(directory + "/earlier");
    handler_put_on_top_later(directory + "/later");
    table_is_bounded_and_reused(directory + "/table");
    guards_come_and_go_while_others_fault(directory + "/churn");
  });
}
