#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "chaos.hpp"
#include "mutations.hpp"
#include "scratch.hpp"

/// Every step of every synchronisation point is switched off in turn: some world must then break a promise.
///
///   test_mutations [SEEDS]             at most so many worlds for each
///   test_mutations --only POINT STEP   one of them

namespace {

using beluga::Point;
using beluga::Step;

constexpr std::uint64_t kSteps = 40'000;

struct Mutation {
  Point point;
  Step step;
};

struct Verdict {
  std::uint64_t seeds;
  double seconds;
  char failure[200];
};

std::string name(const Mutation& m) {
  return std::string(beluga::kPointNames[static_cast<std::size_t>(m.point)]) + " / " +
         beluga::kStepNames[static_cast<std::size_t>(m.step)];
}

/// All that the protocols ask for in some worlds without any fault of the test's own.
std::vector<Mutation> all_mutations(const std::string& directory) {
  for (std::uint64_t seed = 1; seed <= 60; ++seed) {
    const sim::ChaosResult result = sim::run_chaos(seed, kSteps, directory);
    if (!result.failure.empty()) std::fprintf(stderr, "seed %llu: %s\n", static_cast<unsigned long long>(seed), result.failure.c_str());
    CHECK(result.failure.empty());
  }
  std::vector<Mutation> mutations;
  for (std::size_t p = 0; p < beluga::kPoints; ++p) {
    for (std::size_t s = 0; s < beluga::kSteps; ++s) {
      const Mutation m{static_cast<Point>(p), static_cast<Step>(s)};
      if (m.point == Point::statistics || !sim::Mutations::asked(m.point, m.step)) continue;
      mutations.push_back(m);
    }
  }
  return mutations;
}

void hunt(const Mutation& m, std::uint64_t seeds, const std::string& directory, Verdict& verdict) {
  sim::Mutations::switch_off(m.point, m.step);
  std::freopen("/dev/null", "w", stderr);
  const auto begin = std::chrono::steady_clock::now();
  for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
    const sim::ChaosResult result = sim::run_chaos(seed, kSteps, directory);
    verdict.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    if (result.failure.empty()) continue;
    verdict.seeds = seed;
    std::strncpy(verdict.failure, result.failure.c_str(), sizeof(verdict.failure) - 1);
    return;
  }
}

}  // namespace

int main(int argc, char** argv) {
  return scratch::run([&](const std::string& directory) {
    const std::uint64_t seeds = argc > 1 && argv[1][0] != '-' ? std::strtoull(argv[1], nullptr, 10) : 400;
    const std::vector<Mutation> mutations = all_mutations(directory);
    void* shared = mmap(nullptr, mutations.size() * sizeof(Verdict), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    auto* verdicts = static_cast<Verdict*>(shared);
    const unsigned jobs = 2;
    unsigned running = 0;
    for (std::size_t i = 0; i < mutations.size(); ++i) {
      if (running == jobs) {
        CHECK(wait(nullptr) > 0);
        --running;
      }
      std::fflush(nullptr);
      const pid_t child = fork();
      CHECK(child >= 0);
      if (child == 0) {
        const std::string own = directory + "/" + std::to_string(i);
        CHECK(mkdir(own.c_str(), 0700) == 0);
        hunt(mutations[i], seeds, own, verdicts[i]);
        _exit(0);
      }
      ++running;
    }
    for (; running; --running) CHECK(wait(nullptr) > 0);
    std::size_t survivors = 0;
    std::printf("%-38s %8s %7s  %s\n", "switched off", "seeds", "s", "promise broken");
    for (std::size_t i = 0; i < mutations.size(); ++i) {
      const Verdict& v = verdicts[i];
      survivors += v.seeds == 0;
      std::printf("%-38s %8s %7.1f  %s\n", name(mutations[i]).c_str(), v.seeds ? std::to_string(v.seeds).c_str() : "-",
                  v.seconds, v.seeds ? v.failure : "NOT FOUND");
    }
    std::printf("%zu mutations, %zu survived %llu seeds\n", mutations.size(), survivors, static_cast<unsigned long long>(seeds));
    CHECK(survivors == 0);
  });
}
