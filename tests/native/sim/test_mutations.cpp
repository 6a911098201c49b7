#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "duel.hpp"
#include "mutation_hints.hpp"
#include "mutations.hpp"
#include "scenario.hpp"
#include "scratch.hpp"

/// Every call of the protocols that publishes, confirms, observes or looks again is switched off in turn, and each
/// instruction of the sequences that these calls share is taken out of all of them: some duel, scenario or random
/// world must then break a promise.
///
///   test_mutations [--seeds N] [--report FILE] [--only NAME]

namespace {

using beluga::Point;
using beluga::Step;

struct Mutation {
  std::string name;
  std::vector<std::pair<Point, Step>> off;
};

struct Verdict {
  std::uint64_t seeds;  // tried, until one broke a promise; 0: none did
  double seconds;
  char world[40];
  char failure[240];
};

/// The instructions that make up one call at a point.
struct Call {
  const char* name;
  std::vector<Step> steps;
};
const std::vector<Call>& calls() {
  static const std::vector<Call> all = {
      {"publish", {Step::publish_write_back, Step::publish_fence}},
      {"confirm", {Step::confirm_flush, Step::confirm_fence, Step::confirm_load, Step::confirm_last_fence}},
      {"observe", {Step::observe_flush, Step::observe_fence}},
      {"check", {Step::check}},
  };
  return all;
}

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
  std::vector<std::vector<std::pair<Point, Step>>> everywhere(beluga::kSteps);
  for (std::size_t p = 0; p < beluga::kPoints; ++p) {
    const auto point = static_cast<Point>(p);
    // For people to look at, and for what no simulated machine does: it is off once its host id is taken over.
    if (point == Point::statistics || point == Point::departed) continue;
    for (const Call& call : calls()) {
      Mutation site{std::string(beluga::kPointNames[p]) + ": " + call.name, {}};
      for (const Step step : call.steps) {
        if (!sim::Mutations::asked(point, step)) continue;
        site.off.push_back({point, step});
        everywhere[static_cast<std::size_t>(step)].push_back({point, step});
      }
      if (!site.off.empty()) mutations.push_back(std::move(site));
    }
  }
  for (const Step step : {Step::publish_write_back, Step::publish_fence, Step::confirm_flush, Step::confirm_fence,
                          Step::confirm_load, Step::confirm_last_fence, Step::observe_flush, Step::observe_fence}) {
    const std::size_t s = static_cast<std::size_t>(step);
    if (!everywhere[s].empty()) mutations.push_back({std::string("everywhere: ") + beluga::kStepNames[s], everywhere[s]});
  }
  return mutations;
}

/// The duel that is likely to find it first, then all in turn, a few seeds of each at a time; and the scenarios, which
/// take longer.
void hunt(const Mutation& m, std::uint64_t seeds, const std::string& directory, Verdict& verdict) {
  for (const auto& [point, step] : m.off) sim::Mutations::switch_off(point, step);
  const auto begin = std::chrono::steady_clock::now();
  std::uint64_t tried = 0;
  const auto broken = [&](const char* world, const std::string& failure) {
    ++tried;
    if (failure.empty()) return false;
    verdict.seeds = tried;
    std::snprintf(verdict.world, sizeof(verdict.world), "%s", world);
    std::snprintf(verdict.failure, sizeof(verdict.failure), "%s", failure.c_str());
    return true;
  };
  const auto duels = [&](const sim::Duel& duel, std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t seed = first; seed < first + count; ++seed) {
      if (broken(duel.name, sim::run_duel(duel, seed, directory).failure)) return true;
    }
    return false;
  };
  const std::vector<sim::Scenario> scenarios = sim::all_scenarios();
  const sim::Duel* likely = sim::likely_duel(m.off.front().first, m.off.front().second);
  bool done = likely && duels(*likely, 1, 400);
  const char* scene = sim::likely_scenario(m.off.front().first, m.off.front().second);
  for (const sim::Scenario& scenario : scenarios) {
    if (!scene || std::strcmp(scene, scenario.name) != 0) continue;
    for (std::uint64_t seed = 1; !done && seed <= 2000; ++seed) {
      done = broken(scenario.name, sim::play(scenario, seed, directory).failure);
    }
  }
  for (std::uint64_t round = 0; !done && round * 100 < seeds; ++round) {
    for (const sim::Duel* duel : sim::all_duels()) {
      if (!done && (duel != likely || round * 100 >= 400)) done = duels(*duel, round * 100 + 1, 100);
    }
    for (const sim::Scenario& scenario : scenarios) {
      for (std::uint64_t seed = round * 4 + 1; !done && seed <= round * 4 + 4; ++seed) {
        done = broken(scenario.name, sim::play(scenario, seed, directory).failure);
      }
    }
  }
  verdict.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

void report(const char* path, const std::vector<Mutation>& mutations, const Verdict* verdicts) {
  std::FILE* file = std::fopen(path, "w");
  CHECK(file);
  std::fprintf(file,
               "# Mutations\n\nEvery call of the protocols that publishes, confirms, observes or looks again, switched off in "
               "turn; then each\ninstruction of the sequences that the calls share, taken out everywhere; and the simulated "
               "world in which a promise was\nthen broken. Written by `test_mutations --report`.\n\n"
               "| switched off | found by | seeds | promise broken |\n| --- | --- | ---: | --- |\n");
  for (std::size_t i = 0; i < mutations.size(); ++i) {
    std::fprintf(file, "| %s | %s | %llu | %s |\n", mutations[i].name.c_str(), verdicts[i].seeds ? verdicts[i].world : "-",
                 static_cast<unsigned long long>(verdicts[i].seeds),
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
    if (only) std::erase_if(mutations, [&](const Mutation& m) { return m.name.find(only) == std::string::npos; });
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
    std::printf("%-36s %6s %6s  %-24s %s\n", "switched off", "seeds", "s", "found by", "promise broken");
    for (std::size_t i = 0; i < mutations.size(); ++i) {
      const Verdict& v = verdicts[i];
      survivors += v.seeds == 0;
      std::printf("%-36s %6s %6.1f  %-24s %s\n", mutations[i].name.c_str(), v.seeds ? std::to_string(v.seeds).c_str() : "-",
                  v.seconds, v.world, v.seeds ? v.failure : "NOT FOUND");
    }
    std::printf("%zu mutations, %zu survived\n", mutations.size(), survivors);
    if (file) report(file, mutations, verdicts);
    CHECK(survivors == 0);
  });
}
