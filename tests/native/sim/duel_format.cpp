#include "duel.hpp"

/// A forced format against hosts that use the pool.
namespace sim {

namespace {

void size(Rng& rng, Config& config, ClusterShape& shape) {
  shape.hosts = 2;
  shape.keys = 1;
  ticking(config, shape, 40 + rng.below(60), 6, 10);
}

void play(Cluster& cluster) {
  World& world = cluster.world();
  cluster.members(0, 1);
  cluster.thread(*cluster.nodes()[0], "beats", [&](Node& node) {
    for (int i = 0; i < 60 && !node.closed; ++i) {
      node.closed = node.pool->beat() != Pool::Beat::fine;
      Machine::sleep_us(2'000);
    }
  });
  world.after_us(world.random().below(10'000), [&cluster, &world] {
    sim::Process& formatter = world.add_process(cluster.machine(1));
    world.spawn(formatter, "formats", [&cluster, &world] {
      auto* shared = const_cast<beluga::Superblock*>(cluster.memory().shared_superblock());
      V::store(&shared->magic, beluga::kMagicPartial);
      V::store(&shared->epoch, cluster.memory().sb().epoch + 1);
      Machine::flush(shared);
      Machine::full_fence();
      Machine::load_back(shared);
      Machine::full_fence();
      Machine::sleep_us(2'000 * cluster.shape().dead_after_ms);
      if (!cluster.nodes()[0]->closed) world.fail("G1: a process goes on in a pool that was formatted anew");
    });
  });
}

}  // namespace

const Duel kFormatDuel{"format and beat", 30'000, size, play, nullptr};

}  // namespace sim
