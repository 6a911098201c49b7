#include "scenario.hpp"

/// Elections of an extent that their host does not live to finish.
namespace sim {
namespace {

using namespace beluga;

/// DESIGN 6, "claim": a host dies with its claim CLAIMING, SETTLED or just OWNED, its rival goes on, and it comes back.
/// It must withdraw the first two, keep the last, and never share the extent (Oracle::claim_written).
/// Proven by it: `claim / confirm: flush`, and the withdrawal in Recovery::recover_extents.
void unfinished_claim(Stage& s) {
  Node& first = s.join(0);
  Node& second = s.join(1);
  const auto died_with = static_cast<std::uint8_t>(1 + s.random.below(3));
  const bool power = s.random.one_in(2);
  bool dead = false;
  s.when(s.cluster.memory().claims(0), 1,
         [died_with](const Seen& seen) {
           return seen.stage == Seen::Stage::visible && static_cast<std::uint8_t>(seen.value) == died_with;
         },
         s.random.one_in(2) ? 0 : 60, [&] {
           dead = true;
           power ? s.cluster.power_cycle(0) : s.cluster.kill_all(0);
         });
  const auto one = s.begin(first, "claims", [&] { s.store_soon(first, 0, 4); });
  const auto other = s.begin(second, "rival", [&] {
    for (int i = 0; i < 6; ++i) {
      s.store(second, 1);
      Machine::sleep_us(s.random.below(s.shape.heartbeat_ms * 1'500));
    }
  });
  s.until([&] { return dead; }, 40 * s.shape.heartbeat_ms);
  if (s.random.one_in(2)) s.beats(s.random.below(30));
  // Back, while the rival may still be at it.
  Node& again = dead ? s.join(0) : first;
  s.act(again, [&] {
    for (int i = 0; i < 3; ++i) {
      s.store(again, 2);
      s.cluster.read(again, 1, false);
      s.cluster.read(again, 2, false);
    }
  });
  s.await(second, other, "a store beside a dead claim");
  s.act(second, [&] { s.cluster.read(second, 2, false); });
  s.expect(s.owned_by(0) + s.owned_by(1) <= 1, "one extent has one owner");
}

/// Three hosts want the same two extents at the same moment, again and again, while they give them up.
/// Proven by it: `claim / observe: flush`.
void rivals(Stage& s) {
  Node* nodes[3] = {&s.join(0), &s.join(1), &s.join(2)};
  std::vector<std::shared_ptr<bool>> all;
  for (Node* node : nodes) {
    all.push_back(s.begin(*node, "claims", [&s, node] {
      for (int round = 0; round < 4; ++round) {
        s.store(*node, node->host);
        s.cluster.read(*node, node->host, false);
        s.cluster.remove(*node, node->host);
        node->pool->slots.release_empty();
        s.cluster.oracle().operation_ended();
        Machine::sleep_us(s.random.below(s.shape.heartbeat_ms * 500));
      }
    }));
  }
  if (s.random.one_in(3)) s.soon(1'500, [&] { s.cluster.kill_all(s.random.below(3)); });
  for (int i = 0; i < 3; ++i) s.await(*nodes[i], all[static_cast<std::size_t>(i)], "an election");
}

/// A host of which nobody hears any more holds CLAIMING: an election that it did not live to finish stands in nobody's
/// way. Had it only stood still, it wakes up behind its first look, and must find out before it says OWNED.
/// Proven by it: `claim / check` (the second look), the live check in Extents::unclaimed and strongest_rival.
void dead_rival(Stage& s) {
  Node& lower = s.join(0);
  Node& other = s.join(1);
  const bool sleeps = s.random.one_in(2);
  bool away = false;
  s.when(s.cluster.memory().claims(0), 1,
         [](const Seen& seen) {
           return seen.stage == Seen::Stage::visible && static_cast<Claim>(seen.value & 0xff) == Claim::claiming;
         },
         sleeps ? 40 : 0, [&] {
           away = true;
           sleeps ? s.world.pause_host(s.cluster.machine(0), Clock::runs) : s.cluster.kill_all(0);
         });
  const auto claims = s.begin(lower, "claims", [&] { s.store(lower, 0); });
  s.until([&] { return away; }, 40 * s.shape.heartbeat_ms);
  if (s.failed() || !away || s.claim(0, 0) != Claim::claiming) {
    s.world.resume_host(s.cluster.machine(0));
    return;
  }
  // It wakes up when the other has settled, and not cut the extent yet; or when all is over.
  const bool wakes_early = sleeps && s.random.one_in(2);
  if (wakes_early) {
    s.when(s.cluster.memory().claims(1), 1,
           [](const Seen& seen) {
             return seen.stage == Seen::Stage::visible && static_cast<Claim>(seen.value & 0xff) == Claim::settled;
           },
           s.random.below(40), [&] { s.world.resume_host(s.cluster.machine(0)); });
  }
  bool stored = false;
  s.act(other, [&] { stored = s.store_soon(other, 1, 80); });
  s.expect(stored || wakes_early, "G5: a dead host's unfinished claim keeps nobody from an extent");
  if (!sleeps) return;
  s.world.resume_host(s.cluster.machine(0));
  s.await(lower, claims, "an election that slept");
  s.act(other, [&] { s.cluster.read(other, 1, false); });
}

}  // namespace

std::vector<Scenario> claim_scenarios() {
  ClusterShape one;
  one.extents = 4;
  one.keys = 4;
  ClusterShape small = one;
  small.extents = 1;
  small.slots_per_extent = 16;
  ClusterShape three = one;
  three.hosts = 3;
  three.extents = 2;
  three.slots_per_extent = 8;
  return {
      {"unfinished_claim", "a restart with an unfinished claim, while a rival goes on", small, unfinished_claim},
      {"rivals", "three hosts claim and release two extents at once", three, rivals},
      {"dead_rival", "a host dies while it claims; others get the extent", small, dead_rival},
  };
}

}  // namespace sim
