#include "scenario.hpp"

namespace sim {
namespace {

using namespace beluga;

/// G5: one host dies or stops for ever at any step of any operation, while the others store, read, evict, remove, clear,
/// join, leave and are started again. Every operation of theirs ends within a bounded time.
/// Proven by it: Extents::kClaimWaits and the live check beside it, Joining's waits of dead_after, Requests::ask's patience.
void dead_block_nobody(Stage& s) {
  Node& victim = s.join(0);
  Node& one = s.join(1);
  if (s.random.one_in(4)) {
    s.begin(victim, "leaves", [&] {
      s.bustle(victim, 6);
      for (int i = 0; i < 100 && !victim.pool->retire(); ++i) Machine::sleep_us(s.shape.heartbeat_ms * 500);
      s.cluster.oracle().operation_ended();
      victim.closed = true;
    });
  } else {
    s.begin(victim, "works", [&] { s.bustle(victim, 500); });
    s.begin(victim, "clears", [&] {
      for (int i = 0; i < 50 && !s.cluster.stopping(); ++i) {
        victim.pool->removal.remove_all_own();
        victim.pool->slots.release_empty();
        s.cluster.oracle().operation_ended();
      }
    });
  }
  s.act(one, [&] { s.bustle(one, 5); });
  // At any step; also on its way out.
  bool away = false;
  const bool dies = s.random.one_in(2);
  s.soon(3'000, [&] {
    if (dies) {
      s.random.one_in(2) ? s.cluster.kill_all(0) : s.cluster.power_cycle(0);
    } else {
      s.world.pause_host(s.cluster.machine(0), Clock::runs);
    }
    away = true;
  });
  const std::uint64_t limit = 3 * s.shape.dead_after_ms;
  std::uint32_t rounds = 0;
  while (!s.failed() && (!away || rounds < 12)) {
    s.act(one, [&] { s.bustle(one, 1); }, limit);
    if (away) ++rounds;
  }
  s.act(one, [&] {
    one.pool->clear();
    s.cluster.oracle().operation_ended();
  }, limit);
  Node& fresh = s.join(2);  // a joiner waits for the living alone
  s.act(fresh, [&] { s.bustle(fresh, 2); }, limit);
  s.cluster.kill_all(1);
  Node& again = s.join(1);
  for (int i = 0; i < 4; ++i) s.act(again, [&] { s.bustle(again, 2); }, limit);
}

}  // namespace

std::vector<Scenario> dead_scenarios() {
  ClusterShape three;
  three.hosts = 3;
  three.keys = 10;
  return {{"dead_block_nobody", "a host dies or stops for ever at any step", three, dead_block_nobody}};
}

}  // namespace sim
