#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "chaos.hpp"
#include "scratch.hpp"

/// Random worlds, as many at once as there are CPUs.
///
///   test_chaos [SEEDS [STEPS [FIRST]]]    so many worlds; 2,000 of 25,000 steps, and a rest after each
///   test_chaos --soak HOURS [FIRST]       longer worlds until the time is over, or one breaks a promise
///   test_chaos --trace SEED [STEPS]       one of them, with every event

namespace {

using Clock = std::chrono::steady_clock;

struct Tally {
  std::uint64_t seeds = 0;
  std::uint64_t steps = 0;
  std::uint64_t judged = 0;
  std::uint64_t violations = 0;
};

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

std::uint64_t number(int argc, char** argv, int i, std::uint64_t otherwise) {
  return i < argc ? std::strtoull(argv[i], nullptr, 10) : otherwise;
}

void report(const Tally& tally, double seconds) {
  std::printf("%llu seeds, %llu steps, %llu judgements, %llu violations, %.1f s, %.2f million steps/s\n",
              static_cast<unsigned long long>(tally.seeds), static_cast<unsigned long long>(tally.steps),
              static_cast<unsigned long long>(tally.judged), static_cast<unsigned long long>(tally.violations), seconds,
              static_cast<double>(tally.steps) / seconds / 1e6);
  std::fflush(stdout);
}

/// Worlds of every `stride`th seed from `first` on, until `enough` says so.
template <class Enough>
Tally play(std::uint64_t first, std::uint64_t stride, std::uint64_t steps, const std::string& directory, Enough enough) {
  Tally tally;
  for (std::uint64_t seed = first; !enough(seed, tally); seed += stride) {
    const sim::ChaosResult result = sim::run_chaos(seed, steps, directory);
    ++tally.seeds;
    tally.steps += result.steps;
    tally.judged += result.judged;
    if (result.failure.empty()) continue;
    ++tally.violations;
    std::fprintf(stderr, "seed %llu, %u hosts, step %llu: %s\n  test_chaos --trace %llu %llu\n",
                 static_cast<unsigned long long>(seed), result.hosts, static_cast<unsigned long long>(result.steps),
                 result.failure.c_str(), static_cast<unsigned long long>(seed), static_cast<unsigned long long>(steps));
  }
  return tally;
}

/// The same, shared among the CPUs.
template <class Enough>
Tally play_on_all_cpus(std::uint64_t first, std::uint64_t steps, const std::string& directory, Enough enough) {
  const std::uint64_t cpus = std::max(1u, std::thread::hardware_concurrency());
  int results[2];
  CHECK(pipe(results) == 0);
  std::fflush(nullptr);
  for (std::uint64_t i = 0; i < cpus; ++i) {
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child != 0) continue;
    const std::string own = directory + "/" + std::to_string(i);
    std::filesystem::create_directory(own);
    const Tally tally = play(first + i, cpus, steps, own, enough);
    CHECK(write(results[1], &tally, sizeof(tally)) == sizeof(tally));
    _exit(0);
  }
  Tally all;
  for (std::uint64_t i = 0; i < cpus; ++i) {
    int status = 0;
    CHECK(wait(&status) > 0);
    CHECK(scratch::succeeded(status));
    Tally tally;
    CHECK(read(results[0], &tally, sizeof(tally)) == sizeof(tally));
    all.seeds += tally.seeds;
    all.steps += tally.steps;
    all.judged += tally.judged;
    all.violations += tally.violations;
  }
  close(results[0]);
  close(results[1]);
  return all;
}

void soak(double hours, std::uint64_t first, const std::string& directory) {
  constexpr std::uint64_t kBatch = 2'000;
  constexpr std::uint64_t kSteps = 100'000;
  const auto begin = Clock::now();
  Tally all;
  for (std::uint64_t at = first; seconds_since(begin) < hours * 3600 && all.violations == 0; at += kBatch) {
    const auto late = [&] { return seconds_since(begin) >= hours * 3600; };
    const Tally batch = play_on_all_cpus(at, kSteps, directory, [&](std::uint64_t seed, const Tally& tally) {
      return seed >= at + kBatch || tally.violations || late();
    });
    all.seeds += batch.seeds;
    all.steps += batch.steps;
    all.judged += batch.judged;
    all.violations += batch.violations;
    report(all, seconds_since(begin));
  }
  CHECK(all.violations == 0);
}

}  // namespace

int main(int argc, char** argv) {
  return scratch::run([&](const std::string& directory) {
    if (argc > 2 && std::strcmp(argv[1], "--trace") == 0) {
      const auto result = sim::run_chaos(number(argc, argv, 2, 1), number(argc, argv, 3, 25'000), directory, stdout);
      std::printf("%s\n", result.failure.empty() ? "every promise held" : result.failure.c_str());
      return;
    }
    if (argc > 2 && std::strcmp(argv[1], "--soak") == 0) {
      soak(std::strtod(argv[2], nullptr), number(argc, argv, 3, 1), directory);
      return;
    }
    const std::uint64_t seeds = number(argc, argv, 1, 2'000);
    const std::uint64_t steps = number(argc, argv, 2, 25'000);
    const std::uint64_t first = number(argc, argv, 3, 1);
    const auto begin = Clock::now();
    const Tally tally = play_on_all_cpus(first, steps, directory, [&](std::uint64_t seed, const Tally& so_far) {
      return seed >= first + seeds || so_far.violations >= 5;
    });
    report(tally, seconds_since(begin));
    CHECK(tally.violations == 0);
  });
}
