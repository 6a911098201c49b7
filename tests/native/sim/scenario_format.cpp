#include "scenario.hpp"

namespace sim {
namespace {

using namespace beluga;

/// DESIGN 6, "format": a pool is formatted under its users by force. The living close at their next heartbeat, and
/// refuse to commit before; one that was stopped finds out when it wakes, before it stores anything.
/// Proven by it: PoolProcess::formatted_as_attached() at the heartbeat and before a commit, still_ours() before a store,
/// `superblock / observe: flush`.
void forced_format(Stage& s) {
  Node& user = s.join(0);
  Node& stopped = s.join(1);
  for (Node* node : {&user, &stopped}) {
    s.act(*node, [&, node] {
      for (std::uint32_t k = 0; k < 3; ++k) s.store(*node, node->host * 3 + k);
    });
  }
  std::shared_ptr<Lease> lease;
  s.act(stopped, [&] { lease = s.cluster.lease(stopped, 0); });
  const bool stops = s.random.one_in(2);
  if (stops) s.until_idle(stopped);
  if (stops) s.world.pause_host(s.cluster.machine(1), Clock::runs);
  const auto works = s.begin(user, "works", [&] { s.bustle(user, 200); });
  s.beats(s.random.below(4));
  s.cluster.format(2);
  s.until([&] { return s.cluster.formatted(); }, 10 * s.shape.dead_after_ms);
  s.expect(s.cluster.formatted(), "a forced format ends");
  s.expect(user.closed, "users close when the pool is formatted under them");
  s.await(user, works, "the work of a closed pool's user");
  s.expect(stops || stopped.closed, "users close when the pool is formatted under them");
  // Restarted, as a user of a closed pool has to be.
  s.cluster.kill(user);
  Node& fresh = s.join(0);
  s.expect(Stage::up(fresh), "a formatted pool can be used");
  if (s.failed()) return;
  s.act(fresh, [&] {
    for (std::uint32_t k = 0; k < s.cluster.keys(); ++k) s.store_soon(fresh, k);
  });
  const auto lives = s.begin(fresh, "lives", [&] { s.bustle(fresh, 30); });
  if (stops) {
    const auto zombie = s.begin(stopped, "zombie", [&] {
      for (int i = 0; i < 4 && !stopped.closed; ++i) {
        if (lease) s.expect(!s.cluster.transfer(stopped, 0, *lease, false), "no lease outlives a format");
        s.store(stopped, s.random.below(s.cluster.keys()));
        s.cluster.evict_some(stopped);
      }
    });
    if (s.random.one_in(2)) s.hold_back(stopped, "beat1", 2'000);
    s.world.resume_host(s.cluster.machine(1));
    s.until([&] { return stopped.closed; }, 4 * s.shape.dead_after_ms);
    s.expect(stopped.closed, "who was stopped closes when it wakes");
    s.await(stopped, zombie, "a zombie's work");
  }
  s.await(fresh, lives, "the new users' work");
  s.cluster.kill_all(1);
  Node& other = s.join(1);
  s.act(other, [&] { s.bustle(other, 20); });
}

}  // namespace

std::vector<Scenario> format_scenarios() {
  ClusterShape shape;
  shape.spares = 1;
  shape.keys = 8;
  return {{"forced_format", "a pool is formatted by force under its users", shape, forced_format}};
}

}  // namespace sim
