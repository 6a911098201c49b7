#include "duel.hpp"

/// A host that asks the owner of a chunk to take it away.
namespace sim {

namespace {

void size(Rng& rng, Config&, ClusterShape& shape) {
  shape.hosts = 2 + rng.below(2);
  shape.keys = 3;
}

void play(Cluster& cluster) {
  World& world = cluster.world();
  cluster.members(0, cluster.shape().hosts);
  Node& owner = *cluster.nodes()[0];
  for (std::uint32_t k = 0; k < cluster.keys(); ++k) cluster.stored(owner, k);
  cluster.thread(*cluster.nodes()[1], "asks", [&](Node& node) {
    for (std::uint32_t k = 0; k < cluster.keys(); ++k) cluster.remove(node, k);
  });
  cluster.thread(owner, "serves", [&](Node& node) {
    for (int i = 0; i < 12; ++i) {
      node.pool->requests.serve();
      cluster.oracle().operation_ended();
      for (std::uint32_t n = world.random().below(20); n; --n) world.yield();
    }
  });
}

/// All that is under way has arrived, and the owner has looked twice since.
void end(Cluster& cluster) {
  World& world = cluster.world();
  world.settle(false);
  cluster.thread(*cluster.nodes()[0], "serves", [&](Node& node) {
    node.pool->requests.serve();
    node.pool->requests.serve();
    for (std::uint32_t k = 0; k < cluster.keys(); ++k) {
      if (cluster.oracle().holds(k)) world.fail("G2: the owner never hears that a key is to be removed");
    }
  });
  world.run(3'000);
}

}  // namespace

const Duel kRequestDuel{"ask and serve", 3'000, size, play, end};

}  // namespace sim
