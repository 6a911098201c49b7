#pragma once

#include <cstdint>
#include <cstdio>
#include <span>
#include <string>

#include "cluster.hpp"

namespace sim {

/// A small world that stages one race, over and over: a few processes that have attached already, a
/// few slots, a few hundred to a few thousand steps. Where random worlds spend most of their steps
/// on heartbeats, here nearly every step can break a promise, so that thousands of seeds are cheap.
struct Duel {
  const char* name;
  std::uint64_t steps;  // at most
  /// Draws the size of the pool and its clocks.
  void (*size)(Rng& rng, Config& config, ClusterShape& shape);
  /// Sets the scene, outside of any fiber: it costs no step. Then spawns who acts in it.
  void (*play)(Cluster& cluster);
  /// Once everybody is done, or the steps are: what must hold then. May be null.
  void (*end)(Cluster& cluster);
};

extern const Duel kPublicationDuel, kLeaseDuel, kDoomDuel, kLoweredDuel, kClaimDuel, kHandoverDuel,
    kRenewalDuel, kPauseDuel, kJoinDuel, kRequestDuel, 
    kPowerDuel, kTakeoverDuel, kFormatDuel, kElectionDuel, kJoinersDuel;

std::span<const Duel* const> all_duels();

struct DuelResult {
  std::string failure;  // empty: every promise held
  std::uint64_t steps = 0;
  std::uint64_t judged = 0;
};

DuelResult run_duel(const Duel& duel, std::uint64_t seed, const std::string& directory,
                    std::FILE* trace = nullptr);

/// Clocks that stand still, as far as the duel can tell: nobody beats, no lease ends.
void timeless(ClusterShape& shape);
/// A clock that ticks once in about `steps` steps: a beat, `lease` and `dead_after` in ticks.
void ticking(Config& config, ClusterShape& shape, std::uint32_t steps, std::uint32_t lease,
             std::uint32_t dead_after);

/// Half of the time: writes that arrive late, lines that come back at once, loads that are answered late.
void sluggish(Rng& rng, Config& config);

Cluster::Write any_write(Rng& random);

}  // namespace sim
