#include "pinned_threads.hpp"

#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <condition_variable>
#include <cstring>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "errors.hpp"

namespace beluga {
namespace {

constexpr std::size_t kMaxThreads = 1024;

/// 0 or the error.
int pin_to(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<std::size_t>(cpu), &set);
  return sched_setaffinity(0, sizeof set, &set) == 0 ? 0 : errno;
}

/// Where the threads wait until all are ready, or one is not.
struct Gate {
  std::mutex lock;
  std::condition_variable changed;
  std::size_t ready = 0;
  bool open = false;
  std::string trouble;
};

}  // namespace

void run_pinned(std::span<const int> cpus, const std::function<void(std::size_t)>& work) {
  if (cpus.empty() || cpus.size() > kMaxThreads) {
    throw Error(ErrorKind::invalid_argument, "name 1 to " + std::to_string(kMaxThreads) + " CPUs");
  }
  for (const int cpu : cpus) {
    if (cpu < 0 || cpu >= CPU_SETSIZE) {
      throw Error(ErrorKind::invalid_argument, "there is no CPU " + std::to_string(cpu));
    }
  }
  Gate gate;
  const auto thread = [&](std::size_t i) {
    const int error = pin_to(cpus[i]);
    {
      std::unique_lock guard(gate.lock);
      if (error != 0) gate.trouble = "CPU " + std::to_string(cpus[i]) + ": " + std::strerror(error);
      ++gate.ready;
      gate.changed.notify_all();
      gate.changed.wait(guard, [&] { return gate.open; });
      if (!gate.trouble.empty()) return;
    }
    work(i);
  };
  std::vector<std::thread> threads;
  threads.reserve(cpus.size());
  // Signals of the process belong to its own threads: Python's handlers run on the main one.
  sigset_t every;
  sigset_t before;
  sigfillset(&every);
  pthread_sigmask(SIG_SETMASK, &every, &before);
  std::string trouble;
  try {
    for (std::size_t i = 0; i < cpus.size(); ++i) threads.emplace_back(thread, i);
  } catch (const std::system_error& error) {
    trouble = std::string("cannot start a thread: ") + error.what();
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  {
    std::unique_lock guard(gate.lock);
    gate.changed.wait(guard, [&] { return gate.ready == threads.size(); });
    if (!trouble.empty()) gate.trouble = trouble;
    trouble = gate.trouble;
    gate.open = true;
  }
  gate.changed.notify_all();
  for (std::thread& one : threads) one.join();
  if (!trouble.empty()) throw Error(ErrorKind::invalid_argument, trouble);
}

}  // namespace beluga
