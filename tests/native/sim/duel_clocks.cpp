#include "duel.hpp"

/// Races that clocks decide: renewals at the last moment, hosts that stood still.
namespace sim {

namespace {

void beats(Cluster& cluster, Node& node, std::uint32_t pause_us) {
  while (!cluster.stopping() && !node.closed) {
    const std::uint64_t began = cluster.world().steps();
    if (node.pool->beat() != Pool::Beat::fine) {
      node.closed = true;
      cluster.oracle().forget(node);
      return;
    }
    cluster.oracle().operation_ended();
    cluster.oracle().beat(node.machine, began);
    Machine::sleep_us(pause_us);
  }
}

void size_renewal(Rng& rng, Config& config, ClusterShape& shape) {
  shape.hosts = 2;
  shape.keys = 1;
  // A published tick may lag by half of dead_after, which the longest lease has to allow for.
  const std::uint32_t lease = 3 + rng.below(4);
  ticking(config, shape, 20 + rng.below(60), lease, 4 * lease);
}

void play_renewal(Cluster& cluster) {
  World& world = cluster.world();
  cluster.members(0, 2);
  Node& owner = *cluster.nodes()[0];
  Node& holder = *cluster.nodes()[1];
  cluster.stored(owner, 0);
  cluster.thread(owner, "evicts", [&](Node& node) {
    Rng& random = world.random();
    for (int i = 0; i < 60 && !cluster.stopping(); ++i) {
      cluster.evict_some(node);
      cluster.put(node, 0, any_write(random));
      for (std::uint32_t n = random.below(60); n; --n) world.yield();
    }
    cluster.stop();
  });
  cluster.thread(holder, "holds", [&](Node& node) {
    while (!cluster.stopping()) {
      const auto lease = cluster.lease(node, 0);
      if (!lease) continue;
      for (std::uint32_t n = 2 + world.random().below(10); n && !cluster.stopping(); --n) {
        cluster.transfer(node, 0, *lease, false);
        for (std::uint32_t m = world.random().below(20); m; --m) world.yield();
      }
      cluster.release(node, lease);
    }
  });
  const auto renews = [&](Node& node) {
    while (!cluster.stopping()) {
      node.pool->heartbeat.beat(0, 0);
      node.pool->leases.renew();
      Machine::sleep_us(200 + world.random().below(cluster.shape().lease_ms * 600));
    }
  };
  cluster.thread(holder, "renews", renews);
  if (world.random().one_in(2)) cluster.thread(holder, "renews too", renews);
}

void size_pause(Rng& rng, Config& config, ClusterShape& shape) {
  shape.hosts = 2;
  shape.keys = 1;
  ticking(config, shape, 30 + rng.below(60), 6, 10);
}

void play_pause(Cluster& cluster) {
  World& world = cluster.world();
  cluster.members(0, 2);
  Node& owner = *cluster.nodes()[0];
  Node& holder = *cluster.nodes()[1];
  cluster.stored(owner, 0);
  for (Node* node : {&owner, &holder}) {
    cluster.thread(*node, "beats", [&](Node& n) { beats(cluster, n, 2'000); });
  }
  cluster.thread(owner, "evicts", [&](Node& node) {
    Rng& random = world.random();
    for (int i = 0; i < 40; ++i) {
      cluster.evict_some(node);
      cluster.put(node, 0, any_write(random));
      Machine::sleep_us(random.below(2'000));
    }
    cluster.stop();
  });
  cluster.thread(holder, "holds", [&](Node& node) {
    while (!cluster.stopping()) {
      const auto lease = cluster.lease(node, 0);
      if (!lease) {
        Machine::sleep_us(500);
        continue;
      }
      for (std::uint32_t n = 1 + world.random().below(6); n && !cluster.stopping(); --n) {
        cluster.transfer(node, 0, *lease, false);
      }
      cluster.release(node, lease);
    }
  });
  for (std::uint32_t n = 0; n < 3; ++n) {
    world.at_step(200 + n * 2'500 + world.random().below(2'000), [&cluster, &world] {
      sim::Host& machine = cluster.machine(1);
      if (machine.paused) return;
      const bool stops = world.random().one_in(2);
      if (stops) cluster.oracle().clock_stood(1);
      world.pause_host(machine, stops ? Clock::stops : Clock::runs);
      world.after_us(1'000 + world.random().below(30'000), [&world, &machine] { world.resume_host(machine); });
    });
  }
}

}  // namespace

const Duel kRenewalDuel{"renew and evict", 8'000, size_renewal, play_renewal, nullptr};
const Duel kPauseDuel{"pause and evict", 12'000, size_pause, play_pause, nullptr};

}  // namespace sim
