#include "scenario.hpp"

/// Extents that change hands: nothing of the former owner may come after.
namespace sim {
namespace {

using namespace beluga;

/// DESIGN 6, "release": the former owner has written payload with ordinary stores and by DMA into its cache, has given
/// writes up, and lost a process in the middle of one. When the extent is given up, nothing of that may stay dirty:
/// at the end every dirty line everywhere is written back, late, and the next owner's chunks must be whole.
/// Proven by it: `payload / publish: write back` (Extents::flush, as well as Publication).
void dirty_after_handover(Stage& s) {
  Node& former = s.join(0);
  Node& next = s.join(1);
  Node& victim = s.join(0);
  s.act(former, [&] {
    for (std::uint32_t k = 0; k < s.shape.extents * s.shape.slots_per_extent; ++k) {
      if (s.random.one_in(4)) {
        Slot slot;
        if (!s.cluster.reserve(former, slot)) continue;
        s.cluster.fill(k, slot, s.random.one_in(2) ? Cluster::Write::cached : Cluster::Write::dma);
        s.cluster.abandon(former, slot);
      } else {
        s.store(former, k % s.cluster.keys());
      }
    }
  });
  // One more dies while it writes, its slot half dirty.
  const auto half = s.begin(victim, "half", [&] {
    for (std::uint32_t i = 0; i < 4; ++i) {
      Slot slot;
      if (!s.cluster.reserve(victim, slot)) s.cluster.evict_some(victim);
      if (slot.address) s.cluster.fill(1, slot, s.random.one_in(2) ? Cluster::Write::cached : Cluster::Write::dma);
    }
  });
  bool killed = false;
  s.soon(300, [&] {
    s.cluster.kill(victim);
    killed = true;
  });
  s.until([&] { return killed; }, s.shape.dead_after_ms);
  if (s.random.one_in(4)) {  // a restart in between: what was being written is known from the descriptors alone
    s.cluster.kill_all(0);
    s.join(0);
  }
  Node* giver = nullptr;
  for (const auto& node : s.cluster.nodes()) {
    if (node->host == 0 && Stage::up(*node)) giver = node.get();
  }
  if (!giver) return s.expect(false, "a restarted host is up");
  // All goes, and the extents with it.
  s.act(*giver, [&] {
    for (int i = 0; i < 60 && s.owned_by(0) != 0; ++i) {
      giver->pool->removal.remove_all_own();
      giver->pool->slots.release_empty();
      s.cluster.oracle().operation_ended();
      Machine::sleep_us(s.shape.heartbeat_ms * 500);
    }
  });
  s.expect(s.owned_by(0) == 0, "everything is given up");
  std::uint32_t stored = 0;
  s.act(next, [&] {
    for (std::uint32_t k = 0; k < s.cluster.keys(); ++k) stored += s.store_soon(next, k);
  });
  s.expect(stored != 0, "the next owner stores");
  s.world.settle(true);
  Node& reader = *giver;
  for (Node* node : {&reader, &next}) {
    s.act(*node, [&, node] {
      for (std::uint32_t k = 0; k < s.cluster.keys(); ++k) s.cluster.read(*node, k, s.random.one_in(2));
    });
  }
}

/// The former owner dies at any moment of giving extents up. Whoever comes then, recovery or the next owner, finds the
/// extent whole: owned and cut, owned and not cut, or free.
/// Proven by it: the order in Extents::release (header before claim), Slots::repair.
void killed_while_releasing(Stage& s) {
  Node& giver = s.join(0);
  Node& other = s.join(1);
  s.act(giver, [&] {
    for (std::uint32_t k = 0; k < s.cluster.keys(); ++k) s.store(giver, k);
  });
  if (s.random.one_in(2)) s.join(0);  // somebody who takes over at once
  const auto gives = s.begin(giver, "gives", [&] {
    giver.pool->removal.remove_all_own();
    giver.pool->slots.release_empty();
  });
  const auto takes = s.begin(other, "takes", [&] {
    for (std::uint32_t i = 0; i < 2 * s.cluster.keys(); ++i) {
      s.store(other, i % s.cluster.keys());
      Machine::sleep_us(s.random.below(s.shape.heartbeat_ms * 500));
    }
  });
  const bool power = s.random.one_in(3);
  s.soon(2'500, [&] { power ? s.cluster.power_cycle(0) : s.cluster.kill(giver); });
  s.await(other, takes, "storing beside a host that dies");
  if (s.random.one_in(2)) {
    Node& again = s.join(0);
    s.act(again, [&] { s.bustle(again, 10); });
  }
  s.act(other, [&] { s.bustle(other, 10); });
}

}  // namespace

std::vector<Scenario> handover_scenarios() {
  ClusterShape two;
  two.extents = 2;
  two.slots_per_extent = 8;
  two.keys = 10;
  return {
      {"dirty_after_handover", "dirty lines of the former owner come after", two, dirty_after_handover},
      {"killed_while_releasing", "the owner dies while it gives extents up", two, killed_while_releasing},
  };
}

}  // namespace sim
