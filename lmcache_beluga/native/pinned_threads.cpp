#include "pinned_threads.hpp"

#include <sched.h>

#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "errors.hpp"
#include "signal_mask.hpp"

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
  std::string trouble;
  try {
    const WithoutProcessSignals masked;
    for (std::size_t i = 0; i < cpus.size(); ++i) threads.emplace_back(thread, i);
  } catch (const std::system_error& error) {
    trouble = std::string("cannot start a thread: ") + error.what();
  }
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
