#include "duel.hpp"

/// Lease against evict: Dekker's pattern, between hosts and between processes of one.
namespace sim {

namespace {

void size(Rng& rng, Config&, ClusterShape& shape) {
  shape.hosts = 2 + rng.below(2);
  shape.keys = 1 + rng.below(2);
}

void hold(Cluster& cluster, Node& node) {
  Rng& random = cluster.world().random();
  const std::uint32_t dma = random.below(3);
  for (int i = 0; i < 8; ++i) {
    const std::uint32_t k = random.below(cluster.keys());
    const auto lease = cluster.lease(node, k);
    if (!lease) continue;
    for (std::uint32_t n = random.below(40); n; --n) cluster.world().yield();
    // Time stands still here, and every host is well: no lease may end before it is given back.
    if (!cluster.transfer(node, k, *lease, random.below(4) < dma)) {
      cluster.world().fail("G3: host " + std::to_string(node.host) + " has lost a lease that had time left");
    }
    cluster.release(node, lease);
  }
}

void play(Cluster& cluster) {
  World& world = cluster.world();
  cluster.members(0, cluster.shape().hosts);
  const std::uint32_t hosts = cluster.shape().hosts;
  for (std::uint32_t k = 0; k < cluster.keys(); ++k) cluster.stored(*cluster.nodes()[0], k);
  Node& owner = *cluster.nodes()[0];
  cluster.thread(owner, "evicts", [&](Node& node) {
    Rng& random = world.random();
    for (int i = 0; i < 10; ++i) {
      cluster.evict_some(node);
      if (random.one_in(2)) cluster.put(node, random.below(cluster.keys()), any_write(random));
    }
  });
  for (std::uint32_t h = 1; h < hosts; ++h) {
    Node& node = *cluster.nodes()[h];
    cluster.thread(node, "holds", [&](Node& n) { hold(cluster, n); });
    if (world.random().one_in(3)) {
      cluster.thread(node, "holds too", [&](Node& n) { hold(cluster, n); });
    }
    if (world.random().one_in(3)) {
      cluster.thread(cluster.present(h), "holds as well", [&](Node& n) { hold(cluster, n); });
    }
  }
  if (world.random().one_in(3)) {
    cluster.thread(cluster.present(0), "holds its own", [&](Node& n) { hold(cluster, n); });
  }
}

}  // namespace

const Duel kLeaseDuel{"lease and evict", 5'000, size, play, nullptr};

}  // namespace sim
