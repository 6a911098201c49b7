#include "chaos.hpp"

#include <algorithm>

namespace sim {

ChaosPlan ChaosPlan::of(std::uint64_t seed, std::uint64_t steps) {
  Rng rng(seed * 0x9e3779b97f4a7c15 + 0x632be59bd9b4e019);
  ChaosPlan plan;
  plan.config = Config{}.varied(seed);
  plan.config.ddio = rng.one_in(2);
  ClusterShape shape;
  static constexpr std::uint32_t kHosts[] = {2, 2, 2, 3, 3, 4, 6, 8};
  shape.hosts = kHosts[rng.below(8)];
  shape.extents = shape.hosts <= 4 ? 4 : 8;
  if (shape.hosts == 2 && rng.one_in(2)) shape.extents = 4;
  shape.slots_per_extent = 4;
  shape.buckets = rng.one_in(2) ? 1 : 4;
  shape.keys = 4 + rng.below(16);
  plan.shape = shape.paced(plan.config);
  plan.shape.size(plan.config);
  plan.steps = steps / 2 + rng.below(static_cast<std::uint32_t>(steps));
  plan.faults = rng.one_in(3) ? 0 : 1 + rng.below(6);
  return plan;
}

namespace {

/// One worker: any operation, any key, at any pace.
void work(Cluster& cluster, Node& node, std::uint32_t reads_dma) {
  World& world = cluster.world();
  Rng& random = world.random();
  const ClusterShape& shape = cluster.shape();
  while (!cluster.stopping() && !node.closed) {
    const std::uint32_t k = random.below(cluster.keys());
    switch (random.below(16)) {
      case 0: case 1: case 2: case 3: case 4:
        cluster.put(node, k, static_cast<Cluster::Write>(random.below(3)));
        break;
      case 5: case 6: case 7:
        cluster.lookup(node, k);
        break;
      case 8: case 9: case 10: case 11: case 12:
        cluster.read(node, k, random.below(8) < reads_dma, random.one_in(4) ? random.below(shape.lease_ms * 2'000) : 0);
        break;
      case 13: case 14:
        cluster.evict_some(node);
        break;
      default:
        cluster.remove(node, k);
    }
    if (random.one_in(3)) Machine::sleep_us(random.below(shape.heartbeat_ms * 1'500));
  }
}

class Chaos {
 public:
  Chaos(World& world, Cluster& cluster, const ChaosPlan& plan) : world_(world), cluster_(cluster), plan_(plan) {}

  void begin() {
    for (std::uint32_t h = 0; h < plan_.shape.hosts; ++h) {
      const std::uint32_t processes = 1 + world_.random().below(2);
      // Some hosts join later, and some cannot be certain that nobody else has their host id.
      const bool later = h > 0 && world_.random().one_in(4);
      const bool certain = !world_.random().one_in(4);
      const std::uint64_t after_us = later ? 1 + world_.random().below(plan_.shape.dead_after_ms * 2'000) : 0;
      for (std::uint32_t p = 0; p < processes; ++p) {
        if (later) {
          world_.after_us(after_us, [this, h, certain] { start(h, certain); });
        } else {
          start(h, certain);
        }
      }
    }
    for (std::uint32_t i = 0; i < plan_.faults; ++i) {
      world_.at_step(world_.random().below(static_cast<std::uint32_t>(plan_.steps)), [this] { fault(); });
    }
  }

 private:
  void start(std::uint32_t host, bool certain = true) {
    if (cluster_.stopping()) return;
    const auto body = [this](Node& node) {
      const std::uint32_t dma = world_.random().below(3);
      if (world_.random().one_in(3)) cluster_.thread(node, "second", [this, dma](Node& n) { work(cluster_, n, dma); });
      work(cluster_, node, dma);
    };
    cluster_.start(host, body, certain);
  }

  bool anyone(std::uint32_t host) const {
    return std::any_of(cluster_.nodes().begin(), cluster_.nodes().end(),
                       [&](const auto& node) { return node->host == host && node->alive(); });
  }

  void fault() {
    if (cluster_.stopping()) return;
    Rng& random = world_.random();
    const std::uint32_t host = random.below(plan_.shape.hosts);
    const std::uint64_t beat_us = plan_.shape.heartbeat_ms * 1'000;
    const std::uint64_t away_us = random.below(static_cast<std::uint32_t>(plan_.shape.dead_after_ms * 2'500));
    switch (random.below(6)) {
      case 0: case 1: {  // one process dies, another comes
        std::vector<Node*> alive;
        for (const auto& node : cluster_.nodes()) {
          if (node->alive()) alive.push_back(node.get());
        }
        if (alive.empty()) return;
        Node& node = *alive[random.below(static_cast<std::uint32_t>(alive.size()))];
        cluster_.oracle().forget(node);
        world_.kill_process(*node.process);
        again(node.host, random.below(static_cast<std::uint32_t>(4 * beat_us)));
        return;
      }
      case 2:  // all of a host's
        cluster_.kill_all(host);
        again(host, away_us);
        return;
      case 3:
        cluster_.power_cycle(host);
        again(host, away_us);
        return;
      case 4: {  // a machine stands still; its clock may, too
        sim::Host& machine = cluster_.machine(host);
        const bool stops = random.one_in(3);
        if (stops) cluster_.oracle().clock_stood(host);
        world_.pause_host(machine, stops ? Clock::stops : Clock::runs);
        world_.after_us(away_us, [this, &machine, host, stops] {
          if (stops) cluster_.oracle().clock_stood(host);
          world_.resume_host(machine);
        });
        return;
      }
      default: {  // a process stands still
        for (const auto& node : cluster_.nodes()) {
          if (node->host != host || !node->alive() || node->process->paused) continue;
          sim::Process& process = *node->process;
          world_.pause_process(process);
          world_.after_us(away_us, [this, &process] {
            if (process.alive) world_.resume_process(process);
          });
          return;
        }
      }
    }
  }

  void again(std::uint32_t host, std::uint64_t after_us) {
    world_.after_us(after_us + 1, [this, host] {
      if (!cluster_.stopping() && cluster_.machine(host).alive) start(host);
    });
  }

  World& world_;
  Cluster& cluster_;
  const ChaosPlan& plan_;
};

}  // namespace

ChaosResult run_chaos(std::uint64_t seed, std::uint64_t steps, const std::string& directory, std::FILE* trace) {
  ChaosPlan plan = ChaosPlan::of(seed, steps);
  plan.config.trace = trace;
  World world(plan.config, seed);
  Cluster cluster(world, plan.shape, directory);
  Chaos chaos(world, cluster, plan);
  chaos.begin();
  const Outcome outcome = world.run(plan.steps);
  if (outcome == Outcome::stuck) world.fail("G5: every fiber waits, and nothing will wake one");
  if (!world.failed()) cluster.rest_and_check();
  if (world.failed()) world.print_trace(stderr);
  return {world.failed() ? world.failure() : "", world.steps(), cluster.oracle().judged(), plan.shape.hosts};
}

}  // namespace sim
