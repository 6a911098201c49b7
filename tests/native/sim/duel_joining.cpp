#include "duel.hpp"

/// A host that joins while others look things up, and two machines that want one host id.
namespace sim {

namespace {

void size(Rng& rng, Config& config, ClusterShape& shape) {
  shape.hosts = 3;
  shape.keys = 2;
  ticking(config, shape, 40 + rng.below(60), 20, 30);
}

void play(Cluster& cluster) {
  World& world = cluster.world();
  cluster.members(0, 2);
  for (std::uint32_t h = 0; h < 2; ++h) {
    Node& node = *cluster.nodes()[h];
    const bool beats = !world.random().one_in(4);
    cluster.thread(node, "looks up", [&cluster, &world, beats](Node& n) {
      // One that does not beat looks afresh before each lookup, once it is late.
      for (int i = 0; i < 60; ++i) {
        if (beats && i % 3 == 0) {
          n.pool->beat();
          cluster.oracle().operation_ended();
        }
        cluster.lookup(n, world.random().below(cluster.keys()));
        Machine::sleep_us(world.random().below(2'500));
      }
    });
  }
  cluster.start(2, [&](Node& node) {
    for (std::uint32_t k = 0; k < cluster.keys(); ++k) {
      cluster.put(node, k, Cluster::Write::streamed);
      Machine::sleep_us(1'000);
    }
  });
}

/// Two hosts join at once: at least one sees the other.
void play_joiners(Cluster& cluster) {
  World& world = cluster.world();
  for (std::uint32_t h = 0; h < 2; ++h) {
    cluster.start(h, [&cluster, &world, h](Node& node) {
      cluster.put(node, h, Cluster::Write::streamed);
      for (int i = 0; i < 20; ++i) cluster.lookup(node, world.random().below(2));
    });
  }
}

}  // namespace

const Duel kJoinDuel{"join and lookup", 12'000, size, play, nullptr};

const Duel kJoinersDuel{"join and join", 6'000, size, play_joiners, nullptr};

}  // namespace sim
