#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "chaos.hpp"
#include "scratch.hpp"

/// Random worlds: `test_chaos [SEEDS [STEPS [FIRST]]]`, `test_chaos --trace SEED [STEPS]`.

namespace {

constexpr std::uint64_t kSteps = 25'000;

std::uint64_t number(int argc, char** argv, int i, std::uint64_t otherwise) {
  return i < argc ? std::strtoull(argv[i], nullptr, 10) : otherwise;
}

}  // namespace

int main(int argc, char** argv) {
  return scratch::run([&](const std::string& directory) {
    if (argc > 1 && std::strcmp(argv[1], "--trace") == 0) {
      const auto result = sim::run_chaos(number(argc, argv, 2, 1), number(argc, argv, 3, kSteps), directory, stdout);
      std::printf("%s\n", result.failure.empty() ? "every promise held" : result.failure.c_str());
      return;
    }
    const std::uint64_t seeds = number(argc, argv, 1, 200);
    const std::uint64_t steps = number(argc, argv, 2, kSteps);
    const std::uint64_t first = number(argc, argv, 3, 1);
    const auto begin = std::chrono::steady_clock::now();
    std::uint64_t total = 0;
    std::uint64_t judged = 0;
    std::uint64_t failures = 0;
    for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
      const sim::ChaosResult result = sim::run_chaos(seed, steps, directory);
      total += result.steps;
      judged += result.judged;
      if (result.failure.empty()) continue;
      ++failures;
      std::fprintf(stderr, "seed %llu, %u hosts, step %llu: %s\n", static_cast<unsigned long long>(seed), result.hosts,
                   static_cast<unsigned long long>(result.steps), result.failure.c_str());
      if (failures >= 5) break;
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::printf("%llu seeds, %llu steps, %llu judgements, %llu violations, %.1f s, %.2f million steps/s\n",
                static_cast<unsigned long long>(seeds), static_cast<unsigned long long>(total),
                static_cast<unsigned long long>(judged), static_cast<unsigned long long>(failures), seconds,
                static_cast<double>(total) / seconds / 1e6);
    CHECK(failures == 0);
  });
}
