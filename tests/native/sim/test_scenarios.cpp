#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "mutations.hpp"
#include "scenario.hpp"
#include "scratch.hpp"

/// Every failure that the design names, as a scene of its own, under many schedules.
///
///   test_scenarios [NAME|all [SEEDS [FIRST]]]
///   test_scenarios --list
///   test_scenarios --trace NAME SEED
///   test_scenarios --without POINT STEP NAME|all [SEEDS]   with this step of the protocols switched off: some of the
///                                                          scenarios must fail, and the exit status is 0 if one does

namespace {

#ifdef BELUGA_FEW_SEEDS
constexpr std::uint64_t kSeeds = 20;
#else
constexpr std::uint64_t kSeeds = 100;
#endif

void switch_off(const std::string& point, const std::string& step) {
  for (std::size_t p = 0; p < beluga::kPoints; ++p) {
    for (std::size_t i = 0; i < beluga::kSteps; ++i) {
      if (point != beluga::kPointNames[p] || step != beluga::kStepNames[i]) continue;
      sim::Mutations::switch_off(static_cast<beluga::Point>(p), static_cast<beluga::Step>(i));
      return;
    }
  }
  CHECK(!"such a step");
}

unsigned long long ull(std::uint64_t n) { return n; }

}  // namespace

int main(int argc, char** argv) {
  return scratch::run([&](const std::string& directory) {
    const std::vector<sim::Scenario> scenarios = sim::all_scenarios();
    const std::string first = argc > 1 ? argv[1] : "all";
    if (first == "--list") {
      for (const sim::Scenario& s : scenarios) std::printf("%-28s %s\n", s.name, s.about);
      return;
    }
    const bool without = first == "--without";
    if (without) {
      CHECK(argc > 4);
      switch_off(argv[2], argv[3]);
      argc -= 3;
      argv += 3;
    }
    const bool trace = first == "--trace";
    const std::string wanted = trace ? (argc > 2 ? argv[2] : "") : without ? argv[1] : first;
    std::uint64_t failures = 0;
    bool known = wanted == "all";
    for (const sim::Scenario& s : scenarios) {
      if (wanted != "all" && wanted != s.name) continue;
      known = true;
      if (trace) {
        const std::uint64_t seed = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1;
        const sim::ScenarioResult result = sim::play(s, seed, directory, stdout);
        std::printf("%s\n", result.failure.empty() ? "every promise held" : result.failure.c_str());
        continue;
      }
      const std::uint64_t seeds = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : kSeeds;
      const std::uint64_t from = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1;
      const auto begin = std::chrono::steady_clock::now();
      std::uint64_t steps = 0;
      std::uint64_t judged = 0;
      std::uint64_t failed = 0;
      for (std::uint64_t seed = from; seed < from + seeds && failed < 3; ++seed) {
        const sim::ScenarioResult result = sim::play(s, seed, directory);
        steps += result.steps;
        judged += result.judged;
        if (result.failure.empty()) continue;
        ++failed;
        std::fprintf(stderr, "%s, seed %llu, step %llu: %s\n", s.name, ull(seed), ull(result.steps), result.failure.c_str());
      }
      failures += failed;
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      std::printf("%-28s %4llu seeds %10llu steps %8llu judgements %3llu violations %6.1f s\n", s.name, ull(seeds),
                  ull(steps), ull(judged), ull(failed), seconds);
      std::fflush(stdout);
    }
    CHECK(known);
    CHECK((failures != 0) == without);
  });
}
