#include "scenario.hpp"

namespace sim {
namespace {

using namespace beluga;

constexpr std::uint32_t kHalf = 0x8000'0000;

void set_tick(Stage& s, std::uint32_t host, std::uint32_t tick) {
  V::store(&s.cluster.memory().host(host)->heartbeat.tick, tick);
}

/// DESIGN 6, "tick rules": both hosts' ticks pass 2^32 while chunks are leased and evicted. No lease is overlooked, no
/// tick is 0, ages go on.
/// Proven by it: the signed differences in stamp_is_live, slot_use and Heartbeat::publish, HostContext::tick_at.
void tick_wrap(Stage& s) {
  for (std::uint32_t h = 0; h < 2; ++h) set_tick(s, h, 0u - s.random.below(8 * s.shape.dead_after_ms) - 1);
  Node& owner = s.join(0);
  Node& reader = s.join(1);
  for (std::uint32_t h = 0; h < 2; ++h) {
    const HostHeartbeat* beat = &s.cluster.memory().host(h)->heartbeat;
    s.world.watch(s.world.offset(&beat->tick), 4, [&s](const Seen& seen) {
      if (seen.bytes == 4 && static_cast<std::uint32_t>(seen.value) == 0) s.world.fail("G3: a tick of 0");
    });
  }
  const auto reads = s.begin(reader, "reads", [&] {
    for (int i = 0; i < 40; ++i) {
      s.cluster.read(reader, s.random.below(4), false, s.random.below(s.shape.lease_ms * 500));
      Machine::sleep_us(s.random.below(s.shape.dead_after_ms * 300));
    }
  });
  bool stop = false;
  const auto evicts = s.begin(owner, "evicts", [&] {
    while (!stop) {
      for (std::uint32_t k = 0; k < 4; ++k) s.store(owner, k);
      s.cluster.evict_some(owner);
      Machine::sleep_us(s.random.below(s.shape.heartbeat_ms * 1'500));
    }
  });
  s.await(reader, reads, "reading");
  stop = true;
  s.await(owner, evicts, "evicting");
  s.pass(8 * s.shape.dead_after_ms);  // whatever the reads have left of it
  for (Node* node : {&owner, &reader}) {
    std::uint32_t tick = 0;
    s.act(*node, [&] { tick = node->pool->context.tick(); });
    s.expect(tick < kHalf, "the tick has passed 2^32");
  }
  // Whatever the owner wants to evict now can go: no stamp looks like one from the future.
  bool empty = false;
  s.act(owner, [&] {
    for (int i = 0; i < 400 && !empty; ++i) {
      s.cluster.evict_some(owner);
      empty = true;
      for (std::uint32_t k = 0; k < 4; ++k) empty &= !owner.pool->index.find_own(s.cluster.key(k).prints[0]);
      if (!empty) Machine::sleep_us(s.shape.heartbeat_ms * 300);
    }
  });
  s.expect(empty, "G4: what nobody leases can be evicted");
}

/// A stamp that nobody has raised for 2^30 ms would look like one from the future some day: each host scrubs its own,
/// on whichever host's extents.
/// Proven by it: Upkeep::scrub_stamps.
void old_stamps(Stage& s) {
  Node& owner = s.join(0);
  Node& reader = s.join(1);
  s.act(owner, [&] {
    for (std::uint32_t k = 0; k < 4; ++k) s.store_soon(owner, k);
  });
  const HotDescriptor* hot = s.chunk_of(0, 0);
  s.expect(hot != nullptr, "the chunk is there");
  if (!hot) return;
  const auto slot = static_cast<std::uint32_t>(hot - s.cluster.memory().hot(0));
  Node* nodes[] = {&owner, &reader};
  for (Node* node : nodes) {
    s.act(*node, [&, node] {
      s.cluster.read(*node, 0, false);
      std::uint32_t* stamp = s.cluster.memory().stamp(node->host, slot);
      V::store(stamp, node->pool->context.tick() - (1u << 30) - 10'000);
    });
  }
  s.beats(10 * s.shape.extents + 20);
  for (Node* node : nodes) {
    const std::uint32_t stamp = s.world.truth(s.cluster.machine(node->host), s.cluster.memory().stamp(node->host, slot));
    s.expect(stamp == 0, "stamps older than 2^30 ms are scrubbed");
  }
}

}  // namespace

std::vector<Scenario> tick_scenarios() {
  ClusterShape two;
  two.keys = 6;
  return {
      {"tick_wrap", "the hosts' ticks pass 2^32", two, tick_wrap},
      {"old_stamps", "stamps older than 2^30 ms", two, old_stamps},
  };
}

}  // namespace sim
