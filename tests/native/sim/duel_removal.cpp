#include "duel.hpp"

/// Removal of what is leased, and eviction of what is leased no more.
namespace sim {

namespace {

void size(Rng& rng, Config&, ClusterShape& shape) {
  shape.hosts = 2 + rng.below(2);
  shape.keys = 1;
}

/// A chunk is removed while somebody holds it: it stays for him, and nobody finds it any more.
void play_doom(Cluster& cluster) {
  World& world = cluster.world();
  cluster.members(0, cluster.shape().hosts);
  cluster.stored(*cluster.nodes()[0], 0);
  cluster.thread(*cluster.nodes()[0], "removes", [&](Node& node) {
    for (std::uint32_t n = world.random().below(120); n; --n) world.yield();
    cluster.remove(node, 0);
  });
  for (std::size_t h = 1; h < cluster.nodes().size(); ++h) {
    cluster.thread(*cluster.nodes()[h], "holds", [&](Node& node) {
      const auto lease = cluster.lease(node, 0);
      for (int i = 0; i < 25; ++i) cluster.lookup(node, 0);
      if (lease) cluster.transfer(node, 0, *lease, false);
      if (lease) cluster.release(node, lease);
    });
  }
}

void play_lowered(Cluster& cluster) {
  cluster.members(0, cluster.shape().hosts);
  cluster.stored(*cluster.nodes()[0], 0);
  for (std::size_t h = 1; h < cluster.nodes().size(); ++h) {
    cluster.thread(*cluster.nodes()[h], "reads", [&](Node& node) {
      for (std::uint32_t i = 1 + cluster.world().random().below(3); i; --i) {
        cluster.read(node, 0, false);
      }
    });
  }
}

/// All leases have ended, and all that is under way has arrived.
void end_lowered(Cluster& cluster) {
  World& world = cluster.world();
  world.settle(false);
  cluster.thread(*cluster.nodes()[0], "evicts", [&](Node& node) {
    if (!cluster.evict_some(node)) world.fail("G4: a chunk that nobody leases any more cannot be evicted");
  });
  world.run(2'000);
}

}  // namespace

const Duel kDoomDuel{"remove and lookup", 3'000, size, play_doom, nullptr};
const Duel kLoweredDuel{"release and evict", 2'000, size, play_lowered, end_lowered};

}  // namespace sim
