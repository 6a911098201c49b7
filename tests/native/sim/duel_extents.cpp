#include "duel.hpp"

/// Extents that change hands: elections, and release -> claim -> store by somebody else.
namespace sim {

namespace {

void empty_hands(Cluster& cluster, Node& node) {
  node.pool->removal.remove_all_own();
  node.pool->upkeep.retry_doomed();
  cluster.oracle().operation_ended();
  node.pool->slots.release_empty();
}

void size_claim(Rng& rng, Config&, ClusterShape& shape) {
  shape.hosts = 2 + rng.below(2);
  shape.extents = 1;
  shape.slots_per_extent = 16;
  shape.keys = 3;
}

void play_claim(Cluster& cluster) {
  World& world = cluster.world();
  cluster.members(0, cluster.shape().hosts);
  for (std::uint32_t h = 0; h < cluster.shape().hosts; ++h) {
    cluster.thread(*cluster.nodes()[h], "claims", [&](Node& node) {
      Rng& random = world.random();
      for (int i = 0; i < 3; ++i) {
        for (std::uint32_t n = random.below(30); n; --n) world.yield();
        cluster.put(node, random.below(cluster.keys()), any_write(random));
        if (random.one_in(2)) empty_hands(cluster, node);
      }
    });
  }
  if (!world.random().one_in(3)) return;
  const std::uint32_t victim = world.random().below(cluster.shape().hosts);
  world.at_step(1 + world.random().below(1'000), [&cluster, &world, victim] {
    if (world.random().one_in(2)) {
      cluster.kill_all(victim);
    } else {
      cluster.power_cycle(victim);
    }
    cluster.start(victim, [&cluster](Node& node) { cluster.put(node, 0, Cluster::Write::streamed); });
  });
}

/// Elections alone, one after the other.
void play_election(Cluster& cluster) {
  World& world = cluster.world();
  cluster.members(0, cluster.shape().hosts);
  for (std::uint32_t h = 0; h < cluster.shape().hosts; ++h) {
    cluster.thread(*cluster.nodes()[h], "claims", [&](Node& node) {
      Rng& random = world.random();
      for (int i = 0; i < 12; ++i) {
        for (std::uint32_t n = random.below(12); n; --n) world.yield();
        if (!node.pool->extents.claim(0)) continue;
        for (std::uint32_t n = random.below(60); n; --n) world.yield();
        node.pool->extents.publish_claim(0, beluga::Claim::none);
      }
    });
  }
}

void size_handover(Rng& rng, Config&, ClusterShape& shape) {
  shape.hosts = 2 + rng.below(2);
  shape.extents = 1;
  shape.slots_per_extent = 16;
  shape.keys = 2;
}

void play_handover(Cluster& cluster) {
  World& world = cluster.world();
  cluster.members(0, cluster.shape().hosts);
  for (std::uint32_t h = 0; h < cluster.shape().hosts; ++h) {
    cluster.thread(*cluster.nodes()[h], "hands over", [&](Node& node) {
      Rng& random = world.random();
      for (int i = 0; i < 5; ++i) {
        beluga::Slot slot;
        if (random.one_in(2) && cluster.reserve(node, slot)) {
          cluster.fill(0, slot, any_write(random));
          cluster.abandon(node, slot);
        }
        if (random.one_in(2)) cluster.put(node, random.below(cluster.keys()), any_write(random));
        empty_hands(cluster, node);
        for (std::uint32_t n = random.below(4); n; --n) {
          const std::uint32_t k = random.below(cluster.keys());
          if (random.one_in(3)) {
            cluster.lookup(node, k);
          } else {
            cluster.read(node, k, random.one_in(3));
          }
        }
      }
    });
  }
}

}  // namespace

const Duel kClaimDuel{"claim and claim", 6'000, size_claim, play_claim, nullptr};
const Duel kElectionDuel{"elections", 5'000, size_claim, play_election, nullptr};
const Duel kHandoverDuel{"release and claim", 8'000, size_handover, play_handover, nullptr};

}  // namespace sim
