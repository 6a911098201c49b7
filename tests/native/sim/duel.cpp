#include "duel.hpp"

#include <algorithm>
#include <array>

namespace sim {

namespace {
constexpr std::array kDuels = {
    &kPublicationDuel, &kLeaseDuel,    &kDoomDuel,  &kLoweredDuel, &kClaimDuel,    &kHandoverDuel,
    &kRenewalDuel,     &kPauseDuel,    &kJoinDuel,  &kRequestDuel, &kPowerDuel,    &kTakeoverDuel,
    &kFormatDuel, &kElectionDuel, &kJoinersDuel,
};
}  // namespace

std::span<const Duel* const> all_duels() { return kDuels; }

void timeless(ClusterShape& shape) {
  shape.heartbeat_ms = 4;
  shape.lease_ms = 1'000'000;
  shape.dead_after_ms = 20'000'000;
}

void ticking(Config& config, ClusterShape& shape, std::uint32_t steps, std::uint32_t lease,
             std::uint32_t dead_after) {
  const std::uint64_t before = config.step_ns_max;
  config.step_ns_max = 2'000'000 / steps;
  config.step_ns_min = config.step_ns_max / 20;
  config.fabric_lag_ns = config.fabric_lag_ns * config.step_ns_max / before;
  config.store_lag_ns = config.store_lag_ns * config.step_ns_max / before;
  shape.heartbeat_ms = 1;
  shape.lease_ms = lease;
  shape.dead_after_ms = dead_after;
}

void sluggish(Rng& rng, Config& config) {
  if (rng.one_in(2)) return;
  static constexpr std::uint32_t kShares[] = {0, 100, 500, 900};
  config.refetch = kShares[1 + rng.below(3)];
  config.answer_at_once = kShares[rng.below(2)];
  config.flush_at_once = kShares[rng.below(4)];
  config.rates.arrive = rng.below(2);
  config.rates.complete = rng.below(3);
  config.rates.prefetch = 8 + rng.below(32);
  config.fabric_lag_ns = std::uint64_t{config.step_ns_max} * 1'000;
}

Cluster::Write any_write(Rng& random) { return static_cast<Cluster::Write>(random.below(3)); }

DuelResult run_duel(const Duel& duel, std::uint64_t seed, const std::string& directory,
                    std::FILE* trace) {
  Rng rng(seed * 0x9e3779b97f4a7c15 + 0x2545f4914f6cdd1d);
  Config config = Config{}.varied(rng.next());
  config.ddio = rng.one_in(2);
  config.trace = trace;
  config.trace_events = trace ? 400 : 0;
  ClusterShape shape;
  shape.extents = 4;
  shape.slots_per_extent = 4;
  shape.buckets = 1;
  shape.keys = 3;
  timeless(shape);
  sluggish(rng, config);
  duel.size(rng, config, shape);
  shape.size(config);
  World world(config, seed);
  Cluster cluster(world, shape, directory);
  duel.play(cluster);
  const Outcome outcome = world.run(duel.steps);
  if (outcome == Outcome::stuck) world.fail("G5: every fiber waits, and nothing will wake one");
  if (!world.failed() && duel.end) duel.end(cluster);
  if (world.failed() && trace) world.print_trace(stderr);
  return {world.failed() ? world.failure() : "", world.steps(), cluster.oracle().judged()};
}

}  // namespace sim
