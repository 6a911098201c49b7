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

#include "duel.hpp"
#include "mutation_hints.hpp"
#include "mutations.hpp"
#include "scratch.hpp"

/// Every step of every synchronisation point is switched off in turn: some duel must then break a
/// promise.
///
///   test_mutations [--seeds N] [--report FILE] [--only POINT]

namespace {

using beluga::Point;
using beluga::Step;

struct Mutation {
  Point point;
  Step step;
};

struct Verdict {
  std::uint64_t seeds;  // tried, until one broke a promise; 0: none did
  double seconds;
  char duel[40];
  char failure[240];
};

const char* name(Point point) { return beluga::kPointNames[static_cast<std::size_t>(point)]; }
const char* name(Step step) { return beluga::kStepNames[static_cast<std::size_t>(step)]; }

/// All that the protocols ask for in some duel. With everything switched on, no promise breaks.
std::vector<Mutation> all_mutations(const std::string& directory) {
  for (const sim::Duel* duel : sim::all_duels()) {
    for (std::uint64_t seed = 1; seed <= 60; ++seed) {
      const sim::DuelResult result = sim::run_duel(*duel, seed, directory);
      if (result.failure.empty()) continue;
      std::fprintf(stderr, "%s, seed %llu: %s\n", duel->name, static_cast<unsigned long long>(seed),
                   result.failure.c_str());
      CHECK(result.failure.empty());
    }
  }
  std::vector<Mutation> mutations;
  for (std::size_t p = 0; p < beluga::kPoints; ++p) {
    for (std::size_t s = 0; s < beluga::kSteps; ++s) {
      const Mutation m{static_cast<Point>(p), static_cast<Step>(s)};
      if (m.point != Point::statistics && sim::Mutations::asked(m.point, m.step)) mutations.push_back(m);
    }
  }
  return mutations;
}

/// The duel that is known to find it first, then all in turn, a few seeds of each at a time.
void hunt(const Mutation& m, std::uint64_t seeds, const std::string& directory, Verdict& verdict) {
  sim::Mutations::switch_off(m.point, m.step);
  const auto begin = std::chrono::steady_clock::now();
  std::uint64_t tried = 0;
  const auto found = [&](const sim::Duel& duel, std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t seed = first; seed < first + count; ++seed) {
      ++tried;
      const sim::DuelResult result = sim::run_duel(duel, seed, directory);
      if (result.failure.empty()) continue;
      verdict.seeds = tried;
      std::snprintf(verdict.duel, sizeof(verdict.duel), "%s", duel.name);
      std::snprintf(verdict.failure, sizeof(verdict.failure), "%s", result.failure.c_str());
      return true;
    }
    return false;
  };
  const sim::Duel* best = sim::likely_duel(m.point, m.step);
  bool done = best && found(*best, 1, seeds);
  for (std::uint64_t first = 1; !done && first <= seeds; first += 100) {
    for (const sim::Duel* duel : sim::all_duels()) {
      if (duel != best && !done) done = found(*duel, first, 100);
    }
  }
  verdict.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void report(const char* path, const std::vector<Mutation>& mutations, const Verdict* verdicts) {
  std::FILE* file = std::fopen(path, "w");
  CHECK(file);
  std::fprintf(file,
               "# Mutations\n\nEvery step of every synchronisation point, switched off in turn, and the simulated world\n"
               "in which a promise was then broken. Written by `test_mutations --report`.\n\n"
               "| point | step | duel | seeds | promise broken |\n| --- | --- | --- | ---: | --- |\n");
  for (std::size_t i = 0; i < mutations.size(); ++i) {
    std::fprintf(file, "| %s | %s | %s | %llu | %s |\n", name(mutations[i].point), name(mutations[i].step),
                 verdicts[i].seeds ? verdicts[i].duel : "-", static_cast<unsigned long long>(verdicts[i].seeds),
                 verdicts[i].seeds ? verdicts[i].failure : "none found");
  }
  CHECK(std::fclose(file) == 0);
}

}  // namespace

int main(int argc, char** argv) {
  return scratch::run([&](const std::string& directory) {
    std::uint64_t seeds = 1'500;
    const char* file = nullptr;
    const char* only = nullptr;
    for (int i = 1; i + 1 < argc; i += 2) {
      if (std::strcmp(argv[i], "--seeds") == 0) seeds = std::strtoull(argv[i + 1], nullptr, 10);
      if (std::strcmp(argv[i], "--report") == 0) file = argv[i + 1];
      if (std::strcmp(argv[i], "--only") == 0) only = argv[i + 1];
    }
    std::vector<Mutation> mutations = all_mutations(directory);
    if (only) std::erase_if(mutations, [&](const Mutation& m) { return std::strcmp(name(m.point), only) != 0; });
    void* shared = mmap(nullptr, (mutations.size() + 1) * sizeof(Verdict), PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    auto* verdicts = static_cast<Verdict*>(shared);
    unsigned running = 0;
    for (std::size_t i = 0; i < mutations.size(); ++i) {
      if (running == 2) {
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
    std::printf("%-15s %-20s %6s %6s  %-24s %s\n", "point", "switched off", "seeds", "s", "duel", "promise broken");
    for (std::size_t i = 0; i < mutations.size(); ++i) {
      const Verdict& v = verdicts[i];
      survivors += v.seeds == 0;
      std::printf("%-15s %-20s %6s %6.1f  %-24s %s\n", name(mutations[i].point), name(mutations[i].step),
                  v.seeds ? std::to_string(v.seeds).c_str() : "-", v.seconds, v.duel, v.seeds ? v.failure : "NOT FOUND");
    }
    std::printf("%zu mutations, %zu survived\n", mutations.size(), survivors);
    if (file) report(file, mutations, verdicts);
    CHECK(survivors == 0);
  });
}
