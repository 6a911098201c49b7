#pragma once

#include <cstdint>
#include <cstdio>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cluster.hpp"

namespace sim {

/// One run of a scenario. Scenarios are told from outside of all fibers: they start processes, let them act, bring
/// faults about, and say what must be. What the oracle watches is watched all along, and at the end everybody comes
/// back, and no space may be lost.
class Stage {
 public:
  Stage(World& world, Cluster& cluster);
  Stage(const Stage&) = delete;
  Stage& operator=(const Stage&) = delete;

  World& world;
  Cluster& cluster;
  Rng& random;
  const ClusterShape& shape;

  /// A process that has attached; it does nothing of its own accord but beat.
  Node& join(std::uint32_t host) { return join_on(host, host, true); }
  Node& join_on(std::uint32_t machine, std::uint32_t host, bool certain);

  /// Lets a process do something, and waits for its end. G5 fails if it does not end within `limit_ms` (0: a generous
  /// limit), unless the process dies or stands still.
  void act(Node& node, std::function<void()> body, std::uint64_t limit_ms = 0);
  /// Begins it. The flag is raised at its end.
  std::shared_ptr<bool> begin(Node& node, const char* name, std::function<void()> body);
  /// What begin() began has ended, or its process is dead or stands still.
  void await(const Node& node, const std::shared_ptr<bool>& done, const char* what, std::uint64_t limit_ms = 0);

  /// Runs until `holds`; false after so much simulated time.
  bool until(const std::function<bool()>& holds, std::uint64_t limit_ms);
  void pass(std::uint64_t ms);
  void beats(std::uint64_t n) { pass(n * shape.heartbeat_ms); }

  /// What must be.
  void expect(bool holds, const char* what);
  bool failed() const noexcept { return world.failed(); }

  /// Once `is` holds for a write to these bytes, at the end of that step, or up to `steps` steps later: `then`.
  void when(const void* place, std::uint64_t bytes, std::function<bool(const Seen&)> is, std::uint32_t steps,
            std::function<void()> then);
  /// At one of the next `steps` steps.
  void soon(std::uint32_t steps, std::function<void()> then);

  // --- For bodies: in a fiber of the node.

  /// Stores a key, however; true if it is in the pool then.
  bool store(Node& node, std::uint32_t k);
  /// Tries again for some beats.
  bool store_soon(Node& node, std::uint32_t k, int tries = 20);
  /// Stores, looks up, reads and evicts whatever, `n` times.
  void bustle(Node& node, std::uint32_t n);
  Cluster::Write any_write() { return static_cast<Cluster::Write>(random.below(3)); }

  // --- What is so.

  /// Of the chunk's copy on a host; null: none. As that host sees it.
  const beluga::HotDescriptor* chunk_of(std::uint32_t host, std::uint32_t k) const;
  beluga::Claim claim(std::uint32_t host, std::uint32_t extent) const { return claim(host, extent, host); }
  beluga::Claim claim(std::uint32_t host, std::uint32_t extent, std::uint32_t machine) const;
  std::uint32_t owned_by(std::uint32_t host) const { return owned_by(host, host); }
  /// As a machine sees it.
  std::uint32_t owned_by(std::uint32_t host, std::uint32_t machine) const;
  /// The fiber of this name of the process is not chosen, as long as there are others, for so many steps.
  void hold_back(const Node& node, const std::string& name, std::uint64_t steps);
  /// Runs until no fiber of the process is in the middle of anything.
  void until_idle(const Node& node);
  static bool up(const Node& node) { return node.alive() && node.usable && !node.closed; }

 private:
  struct Trigger {
    std::shared_ptr<bool> pulled;
    std::function<void()> then;
  };

  std::deque<Trigger> triggers_;
  std::uint32_t pulled_ = 0;
};

struct Scenario {
  const char* name;
  const char* about;
  ClusterShape shape;
  void (*play)(Stage& stage);
  std::uint32_t lease_beats = 8;  // dead_after is 15
};

struct ScenarioResult {
  std::string failure;  // empty: every promise held
  std::uint64_t steps = 0;
  std::uint64_t judged = 0;
};

ScenarioResult play(const Scenario& scenario, std::uint64_t seed, const std::string& directory, std::FILE* trace = nullptr);

std::vector<Scenario> claim_scenarios();
std::vector<Scenario> verdict_scenarios();
std::vector<Scenario> handover_scenarios();
std::vector<Scenario> host_scenarios();
std::vector<Scenario> process_scenarios();
std::vector<Scenario> chunk_scenarios();
std::vector<Scenario> pressure_scenarios();
std::vector<Scenario> request_scenarios();
std::vector<Scenario> format_scenarios();
std::vector<Scenario> tick_scenarios();
std::vector<Scenario> dead_scenarios();
std::vector<Scenario> all_scenarios();

}  // namespace sim
