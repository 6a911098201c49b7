#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>

#include "check.hpp"
#include "machine.hpp"
#include "noncoherent.hpp"

/// Litmus tests: a small scene, run from many seeds, whose outcome may or must not be seen.
///
/// A test program takes `--trace NAME SEED`: that one scene, with every event printed.
namespace litmus {

using sim::Config;
using sim::Machine;
using sim::World;
using V = beluga::Noncoherent<sim::Machine>;
static_assert(beluga::VisibilityPolicy<V>);
using beluga::Point;
using beluga::Step;

/// Plays in the world, and returns whether the outcome in question was seen.
using Scene = std::function<bool(World&)>;

inline const char* traced_name = nullptr;
inline std::uint64_t traced_seed = 0;

inline Config small() {
  Config config;
  config.device_bytes = 64 * 1024;
  return config;
}

inline bool play(const Config& base, std::uint64_t seed, const Scene& scene, bool print) {
  World world(base.varied(seed), seed);
  const bool seen = scene(world);
  if (world.failed()) {
    std::fprintf(stderr, "seed %llu: %s\n", static_cast<unsigned long long>(seed),
                 world.failure().c_str());
    print = true;
  }
  if (print) world.print_trace(stderr);
  CHECK(!world.failed());
  return seen;
}

inline bool only_traced(const char* name, Config base, const Scene& scene) {
  if (!traced_name) return false;
  if (std::strcmp(traced_name, name) != 0) return true;
  base.trace = stdout;
  std::printf("seen: %d\n", play(base, traced_seed, scene, false));
  return true;
}

/// The outcome is allowed, and one of so many seeds shows it.
inline void seen(const char* name, const Scene& scene, const Config& base = small(),
                 std::uint64_t seeds = 20'000) {
  if (only_traced(name, base, scene)) return;
  for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
    if (!play(base, seed, scene, false)) continue;
    std::printf("seen   %-70s seed %llu\n", name, static_cast<unsigned long long>(seed));
    return;
  }
  std::fprintf(stderr, "%s: never seen\n", name);
  CHECK(false);
}

/// The outcome is impossible: none of so many seeds shows it.
inline void never(const char* name, const Scene& scene, const Config& base = small(),
                  std::uint64_t seeds = 10'000) {
  if (only_traced(name, base, scene)) return;
  for (std::uint64_t seed = 1; seed <= seeds; ++seed) {
    if (!play(base, seed, scene, false)) continue;
    std::fprintf(stderr, "%s: seen with seed %llu\n", name, static_cast<unsigned long long>(seed));
    play(base, seed, scene, true);
    CHECK(false);
  }
  std::printf("never  %s\n", name);
}

/// Switches one step off for the scenes that are played while it lives.
class Without {
 public:
  Without(Point point, Step step) { sim::Mutations::switch_off(point, step); }
  ~Without() { sim::Mutations::restore(); }
  Without(const Without&) = delete;
  Without& operator=(const Without&) = delete;
};

/// The word at the start of a line.
inline std::uint64_t* word(World& world, std::uint32_t line) {
  return reinterpret_cast<std::uint64_t*>(world.base() + std::uint64_t{line} * sim::kLineBytes);
}

inline void run(World& world, std::uint64_t steps = 20'000) {
  const sim::Outcome outcome = world.run(steps);
  if (outcome == sim::Outcome::failed) return;
  if (outcome != sim::Outcome::finished) world.print_trace(stderr);
  CHECK(outcome == sim::Outcome::finished);
}

inline void arguments(int argc, char** argv) {
  if (argc != 4 || std::strcmp(argv[1], "--trace") != 0) return;
  traced_name = argv[2];
  traced_seed = std::strtoull(argv[3], nullptr, 10);
}

}  // namespace litmus
