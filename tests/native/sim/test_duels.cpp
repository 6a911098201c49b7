#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "duel.hpp"
#include "scratch.hpp"

/// Every duel, many times: `test_duels [SEEDS [FIRST]]`, `test_duels --only NAME [SEEDS [FIRST]]`,
/// `test_duels --trace NAME SEED`.

int main(int argc, char** argv) {
  return scratch::run([&](const std::string& directory) {
    const auto argument = [&](int i, std::uint64_t otherwise) {
      return i < argc ? std::strtoull(argv[i], nullptr, 10) : otherwise;
    };
    const bool tracing = argc > 3 && std::strcmp(argv[1], "--trace") == 0;
    const bool one = tracing || (argc > 2 && std::strcmp(argv[1], "--only") == 0);
    const std::uint64_t seeds = tracing ? 1 : argument(one ? 3 : 1, 300);
    const std::uint64_t first = tracing ? argument(3, 1) : argument(one ? 4 : 2, 1);
    std::uint64_t failures = 0;
    for (const sim::Duel* duel : sim::all_duels()) {
      if (one && std::strcmp(duel->name, argv[2]) != 0) continue;
      const auto begin = std::chrono::steady_clock::now();
      std::uint64_t steps = 0, judged = 0, failed = 0;
      for (std::uint64_t seed = first; seed < first + seeds; ++seed) {
        const sim::DuelResult result = sim::run_duel(*duel, seed, directory, tracing ? stdout : nullptr);
        steps += result.steps;
        judged += result.judged;
        if (result.failure.empty()) continue;
        ++failed;
        std::fprintf(stderr, "%s, seed %llu, step %llu: %s\n", duel->name, static_cast<unsigned long long>(seed),
                     static_cast<unsigned long long>(result.steps), result.failure.c_str());
        if (failed >= 4) break;
      }
      failures += failed;
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
      std::printf("%-24s %6llu seeds %8.0f seeds/s %9llu steps %8llu judgements %llu violations\n", duel->name,
                  static_cast<unsigned long long>(seeds), static_cast<double>(seeds) / seconds,
                  static_cast<unsigned long long>(steps), static_cast<unsigned long long>(judged),
                  static_cast<unsigned long long>(failed));
    }
    CHECK(failures == 0);
  });
}
