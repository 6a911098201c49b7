#include "duel.hpp"

/// Owners that end in the middle: by SIGKILL, by loss of power; on their machine or on another.
namespace sim {

namespace {

void size(Rng& rng, Config&, ClusterShape& shape) {
  shape.hosts = 2;
  shape.spares = 1;
  shape.keys = 1 + rng.below(3);
}

void stores(Cluster& cluster, Node& node) {
  Rng& random = cluster.world().random();
  for (int i = 0; i < 8; ++i) {
    const std::uint32_t k = random.below(cluster.keys());
    cluster.put(node, k, any_write(random));
    if (random.one_in(3)) cluster.evict_some(node);
    if (random.one_in(4)) cluster.remove(node, k);
  }
}

void finds(Cluster& cluster, Node& node) {
  for (std::uint32_t k = 0; k < cluster.keys(); ++k) {
    cluster.lookup(node, k);
    cluster.read(node, k, false);
  }
}

void play_on(Cluster& cluster, bool same) {
  World& world = cluster.world();
  cluster.members(0, 2);
  cluster.thread(*cluster.nodes()[0], "stores", [&](Node& node) { stores(cluster, node); });
  cluster.thread(*cluster.nodes()[1], "reads", [&](Node& node) {
    for (int i = 0; i < 30; ++i) cluster.read(node, world.random().below(cluster.keys()), false);
  });
  if (!same) {
    // The machine that will take over has looked at the pool before.
    sim::Process& looker = world.add_process(cluster.machine(2));
    world.spawn(looker, "looks", [&cluster, &world] {
      const beluga::Superblock& sb = cluster.memory().sb();
      for (std::uint64_t at = sb.hosts_offset; at < sb.metadata_bytes; at += beluga::kLine) {
        const bool host_page = at < sb.index_offset && (at - sb.hosts_offset) % sb.host_stride >= 128 &&
                               (at - sb.hosts_offset) % sb.host_stride < beluga::kClaimsOffset;
        if (!host_page && world.random().one_in(2)) V::load(reinterpret_cast<const std::uint64_t*>(world.base() + at));
      }
    });
  }
  world.at_step(20 + world.random().below(1'200), [&cluster, &world, same] {
    if (!same || world.random().one_in(2)) {
      cluster.power_cycle(0);
    } else {
      cluster.kill_all(0);
    }
    const auto body = [&cluster](Node& node) {
      finds(cluster, node);
      stores(cluster, node);
      finds(cluster, node);
    };
    cluster.start_on(same ? 0 : 2, 0, body, true);
  });
}

void play_power(Cluster& cluster) { play_on(cluster, true); }
void play_takeover(Cluster& cluster) { play_on(cluster, false); }

}  // namespace

const Duel kPowerDuel{"commit and power cut", 8'000, size, play_power, nullptr};
const Duel kTakeoverDuel{"power cut and take-over", 8'000, size, play_takeover, nullptr};

}  // namespace sim
