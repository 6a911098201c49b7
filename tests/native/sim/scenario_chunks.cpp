#include "scenario.hpp"

/// Chunks between READY and FREE: evictions that are given up, removals under a lease, lanes that are full.
namespace sim {
namespace {

using namespace beluga;

/// DESIGN 6, "lease": the evictor closes a chunk, finds it leased, and opens it again, over and over. Whoever looks
/// finds it; whoever wants to lease it does, now or in a moment; and what is leased stays.
/// Proven by it: `reopen / confirm: flush`, `closing / check`.
void aborted_closing(Stage& s) {
  Node& owner = s.join(0);
  Node& holder = s.join(1);
  Node& reader = s.join(2);
  s.act(owner, [&] { s.expect(s.store_soon(owner, 0), "an empty pool has room"); });
  std::shared_ptr<Lease> lease;
  s.act(holder, [&] { lease = s.cluster.lease(holder, 0); });
  s.expect(lease != nullptr, "a quiet chunk can be leased");
  if (!lease) return;
  const HotDescriptor* hot = s.chunk_of(0, 0);
  s.expect(hot != nullptr, "the chunk is there");
  if (!hot) return;
  const std::uint64_t generation = lease->generation;
  bool stop = false;
  const auto evicts = s.begin(owner, "evicts", [&] {
    for (int i = 0; i < 30; ++i) {
      owner.pool->eviction.evict(lease->slot, make_word(generation, 0, SlotState::ready));
      s.cluster.oracle().operation_ended();
      if (s.random.one_in(2)) Machine::sleep_us(s.random.below(s.shape.heartbeat_ms * 300));
    }
    stop = true;
  });
  std::uint32_t hits = 0;
  const auto reads = s.begin(reader, "reads", [&] {
    while (!stop) {
      s.cluster.lookup(reader, 0);
      hits += s.cluster.read(reader, 0, s.random.one_in(2));
      if (s.random.one_in(2)) Machine::sleep_us(s.random.below(s.shape.heartbeat_ms * 300));
    }
    hits += s.cluster.read(reader, 0, false);
  });
  s.await(owner, evicts, "evicting");
  s.await(reader, reads, "reading");
  s.expect(hits != 0, "a chunk whose eviction was given up can be leased");
  bool valid = false;
  s.act(holder, [&] {
    valid = s.cluster.transfer(holder, 0, *lease, false);
    s.cluster.release(holder, lease);
  });
  s.expect(valid, "the lease that the evictor respected is good");
}

/// A chunk is removed while it is leased: nobody finds it any more, its reader goes on, and its owner dies and comes
/// back, or a sibling buries it. The slot is not used again before the lease has ended, and is then.
/// Proven by it: the look at the stamps in Recovery::recover_slot, Upkeep::adopt_closing and retry_doomed.
void doomed(Stage& s) {
  Node& owner = s.join(0);
  Node& reader = s.join(1);
  Node* sibling = s.random.one_in(2) ? &s.join(0) : nullptr;
  s.act(owner, [&] { s.expect(s.store_soon(owner, 0), "an empty pool has room"); });
  std::shared_ptr<Lease> lease;
  s.act(reader, [&] { lease = s.cluster.lease(reader, 0); });
  if (!lease) return;
  s.act(owner, [&] { s.cluster.remove(owner, 0); });
  bool found = true;
  s.act(reader, [&] { found = static_cast<bool>(reader.pool->index.find_one(s.cluster.key(0).prints[0])); });
  s.expect(!found, "what is removed is not found");
  const bool power = !sibling && s.random.one_in(2);
  s.pass(s.random.below(2 * s.shape.heartbeat_ms));
  power ? s.cluster.power_cycle(0) : s.cluster.kill(owner);
  if (s.random.one_in(2)) s.pass(s.random.below(s.shape.dead_after_ms));
  if (!sibling) sibling = &s.join(0);
  const auto stores = s.begin(*sibling, "stores", [&] {
    for (std::uint32_t i = 0; i < 3 * s.cluster.keys(); ++i) {
      s.store(*sibling, 1 + i % (s.cluster.keys() - 1));
      if (s.random.one_in(2)) Machine::sleep_us(s.random.below(s.shape.heartbeat_ms * 700));
    }
  });
  bool valid = true;
  s.act(reader, [&] {
    for (int i = 0; i < 6; ++i) {
      valid &= s.cluster.transfer(reader, 0, *lease, s.random.one_in(2));
      Machine::sleep_us(s.random.below(s.shape.heartbeat_ms * 2'000));
    }
    s.cluster.release(reader, lease);
  });
  s.expect(valid, "a reader keeps what was removed under its lease");
  s.await(*sibling, stores, "storing");
}

/// DESIGN 4: a lane is full. If all that it names is leased, the store is refused; when one lease has ended, that chunk
/// makes room.
/// Proven by it: the check of the stamps in Eviction::clear_lane; Publication::kLaneAttempts bounds it.
void lane_overflow(Stage& s) {
  Node& owner = s.join(0);
  Node& reader = s.join(1);
  std::uint32_t stored = 0;
  s.act(owner, [&] {
    for (std::uint32_t k = 0; k < kLaneEntries; ++k) stored += s.store_soon(owner, k);
  });
  s.expect(stored == kLaneEntries, "a lane takes its entries");
  std::vector<std::shared_ptr<Lease>> leases(kLaneEntries);
  s.act(reader, [&] {
    for (std::uint32_t k = 0; k < kLaneEntries; ++k) leases[k] = s.cluster.lease(reader, k);
  });
  for (const auto& lease : leases) {
    s.expect(lease != nullptr, "a quiet chunk can be leased");
    if (!lease) return;
  }
  bool kept = true;
  bool refused = false;
  s.act(owner, [&] {
    for (int i = 0; i < 3; ++i) refused |= !s.store(owner, kLaneEntries);
  });
  s.act(reader, [&] {
    for (std::uint32_t k = 0; k < kLaneEntries; ++k) kept &= s.cluster.transfer(reader, k, *leases[k], false);
  });
  s.expect(!kept || refused, "a full lane of leased chunks refuses the next");
  if (!kept) return;  // the host was so slow that it was late
  const std::uint32_t freed = s.random.below(kLaneEntries);
  s.act(reader, [&] { s.cluster.release(reader, leases[freed]); });
  bool fits = false;
  s.act(owner, [&] { fits = s.store_soon(owner, kLaneEntries, 60); });
  s.expect(fits, "a chunk that nobody leases makes room in its lane");
  s.act(reader, [&] {
    for (std::uint32_t k = 0; k < kLaneEntries; ++k) {
      if (k == freed) continue;
      s.cluster.transfer(reader, k, *leases[k], false);
      s.cluster.release(reader, leases[k]);
    }
    s.cluster.read(reader, kLaneEntries, false);
  });
}

}  // namespace

std::vector<Scenario> chunk_scenarios() {
  ClusterShape three;
  three.hosts = 3;
  three.keys = 6;
  ClusterShape two;
  two.keys = 20;
  ClusterShape lane;
  lane.buckets = 1;
  lane.extents = 1;
  lane.slots_per_extent = 16;
  lane.keys = kLaneEntries + 1;
  return {
      {"aborted_closing", "an evictor gives up on a leased chunk, again and again", three, aborted_closing},
      {"doomed", "a chunk is removed while leased, and its owner dies", two, doomed},
      {"lane_overflow", "a lane is full of leased chunks", lane, lane_overflow},
  };
}

}  // namespace sim
