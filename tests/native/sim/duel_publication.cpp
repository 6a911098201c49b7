#include "duel.hpp"

/// Commit against lookup: chunks come and go in few slots, and readers that keep old lines look on.
namespace sim {

namespace {

void size(Rng& rng, Config&, ClusterShape& shape) {
  shape.hosts = 2 + rng.below(2);
  shape.keys = 1 + rng.below(3);
}

void play(Cluster& cluster) {
  World& world = cluster.world();
  cluster.members(0, cluster.shape().hosts);
  const std::size_t hosts = cluster.nodes().size();
  if (world.random().one_in(2)) cluster.stored(*cluster.nodes()[0], 0);
  cluster.thread(*cluster.nodes()[0], "stores", [&](Node& node) {
    Rng& random = world.random();
    for (int i = 0; i < 6; ++i) {
      const std::uint32_t k = random.below(cluster.keys());
      cluster.put(node, k, any_write(random));
      if (random.one_in(2)) {
        cluster.remove(node, k);
      } else if (random.one_in(2)) {
        cluster.evict_some(node);
      }
    }
  });
  for (std::size_t h = 1; h < hosts; ++h) {
    cluster.thread(*cluster.nodes()[h], "reads", [&](Node& node) {
      Rng& random = world.random();
      const std::uint32_t leases = random.below(5);
      const std::uint32_t dma = random.below(3);
      for (int i = 0; i < 14; ++i) {
        const std::uint32_t k = random.below(cluster.keys());
        if (random.below(4) < leases) {
          cluster.read(node, k, random.below(4) < dma);
        } else {
          cluster.lookup(node, k);
        }
      }
    });
  }
}

}  // namespace

const Duel kPublicationDuel{"publication", 4'000, size, play, nullptr};

}  // namespace sim
