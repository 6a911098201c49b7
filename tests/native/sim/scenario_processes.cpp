#include "scenario.hpp"

#include <algorithm>

/// Processes of one host that die or stop in the middle of what they share.
namespace sim {
namespace {

using namespace beluga;

/// DESIGN 4: a lane's entries are single stores. A process dies at any step between the entry and READY, or between
/// the entry's removal and FREE; the others of its host and of other hosts lose nobody else's key.
/// Proven by it: the order in Publication::publish and Slots::finish_locked; Upkeep::sweep_slot.
void lane_writer_killed(Stage& s) {
  Node& writer = s.join(0);
  Node& sibling = s.join(0);
  Node& reader = s.join(1);
  s.act(sibling, [&] {
    for (std::uint32_t k = 0; k < 3; ++k) s.store(sibling, k);
  });
  const auto reads = s.begin(reader, "reads", [&] {
    for (int i = 0; i < 20; ++i) s.cluster.lookup(reader, s.random.below(s.cluster.keys()));
  });
  s.begin(writer, "writes", [&] {
    for (int i = 0; i < 50; ++i) {
      const std::uint32_t k = 3 + s.random.below(s.cluster.keys() - 3);
      s.store(writer, k);
      if (s.random.one_in(2)) s.cluster.remove(writer, k);
      if (s.random.one_in(4)) s.cluster.evict_some(writer);
    }
  });
  if (s.random.one_in(2)) {
    // Just behind a store to the lane.
    s.when(s.cluster.memory().lane(s.random.below(s.shape.buckets), 0), kLine,
           [](const Seen& seen) { return seen.stage == Seen::Stage::visible; }, 12, [&] { s.cluster.kill(writer); });
  } else {
    s.soon(2'500, [&] { s.cluster.kill(writer); });
  }
  s.until([&] { return !writer.alive(); }, s.shape.dead_after_ms);
  s.act(sibling, [&] { s.bustle(sibling, 15); });
  s.await(reader, reads, "reading");
}

/// A process dies while it holds the slot lock, at any of its steps: the next taker repairs the free map, finishes or
/// withdraws its claims, and no slot is lost or given out twice.
/// Proven by it: Slots::repair (ControlHeader::intent), Upkeep::sweep taking the lock first.
void killed_under_the_slot_lock(Stage& s) {
  Node& victim = s.join(0);
  Node& sibling = s.join(0);
  s.begin(victim, "works", [&] { s.bustle(victim, 200); });
  s.pass(s.random.below(3 * s.shape.heartbeat_ms));
  // Some steps after it has got the lock.
  const void* lock = &s.cluster.control(0).header().slots;
  const auto holds = [&] {
    const Fiber* holder = s.world.holder(lock);
    return holder && &holder->process == victim.process;
  };
  std::uint32_t left = 1 + s.random.below(120);
  s.until([&] { return (holds() && --left == 0) || !victim.alive(); }, 4 * s.shape.dead_after_ms);
  if (victim.alive()) s.cluster.kill(victim);
  const std::uint64_t limit = 20 * s.shape.dead_after_ms;
  bool stored = false;
  s.act(sibling, [&] {
    s.bustle(sibling, 15);
    stored = s.store_soon(sibling, 0, 60);
  }, limit);
  s.expect(stored, "the living go on");
  if (s.random.one_in(2)) {
    Node& fresh = s.join(0);
    s.act(fresh, [&] { s.bustle(fresh, 10); }, limit);
  }
}

/// A process is stopped while it holds the slot lock: others get refusals after a bounded wait, and hits as ever.
/// Proven by it: the timeout of Slots::Locked; G7 by NoLocks.
void stopped_under_the_slot_lock(Stage& s) {
  Node& victim = s.join(0);
  Node& sibling = s.join(0);
  Node& other = s.join(1);
  s.act(sibling, [&] { s.store_soon(sibling, 0); });
  s.begin(victim, "works", [&] { s.bustle(victim, 200); });
  const void* lock = &s.cluster.control(0).header().slots;
  std::uint32_t left = 1 + s.random.below(60);
  s.until(
      [&] {
        const Fiber* holder = s.world.holder(lock);
        return holder && &holder->process == victim.process && --left == 0;
      },
      4 * s.shape.dead_after_ms);
  s.world.pause_process(*victim.process);
  for (int i = 0; i < 6; ++i) {
    s.act(sibling, [&] { s.bustle(sibling, 1); }, 4 * s.shape.dead_after_ms);
    s.act(other, [&] { s.bustle(other, 1); }, 4 * s.shape.dead_after_ms);
  }
  s.world.resume_process(*victim.process);
  s.act(sibling, [&] { s.bustle(sibling, 5); });
}

/// DESIGN 6, "within a host": a process is killed while its GPU writes into its slot. The kernel has released its locks,
/// but the DMA goes on: the slot is not used again before the process's exit is complete.
/// Proven by it: the wait for the end of the process in Cluster::bury_dead and attach (Membership's pidfd).
void reclaim_under_dma(Stage& s) {
  Node& writer = s.join(0);
  Node* sibling = s.random.one_in(2) ? &s.join(0) : nullptr;
  Slot slot;
  s.act(writer, [&] { s.cluster.reserve(writer, slot); });
  if (!slot.address) return;
  s.begin(writer, "dma", [&] { s.cluster.fill(0, slot, Cluster::Write::dma); });
  s.soon(60, [&] { s.cluster.kill(writer); });
  s.until([&] { return !writer.alive(); }, s.shape.dead_after_ms);
  if (!sibling) sibling = &s.join(0);
  s.act(*sibling, [&] {
    for (std::uint32_t i = 0; i < 3 * s.cluster.keys(); ++i) {
      const std::uint32_t k = i % s.cluster.keys();
      s.store(*sibling, k);
      s.cluster.read(*sibling, k, s.random.one_in(2));
      if (s.random.one_in(3)) Machine::sleep_us(s.random.below(s.shape.heartbeat_ms * 500));
    }
  });
}

/// Several processes of a host lease one chunk through one stamp. The last holder dies while it lowers the stamp, as
/// others begin to hold; whoever holds is safe (G3), and when nobody does any more, the chunk can go.
/// Proven by it: the lowering bit in Leases::give_back, Leases::forget_process.
void stamp_of_several_processes(Stage& s) {
  Node& owner = s.join(0);
  Node* nodes[3] = {&s.join(1), &s.join(1), &s.join(1)};
  s.act(owner, [&] { s.expect(s.store_soon(owner, 0), "an empty pool has room"); });
  std::vector<std::shared_ptr<bool>> reads;
  for (Node* node : nodes) {
    reads.push_back(s.begin(*node, "reads", [&s, node] {
      for (int i = 0; i < 25; ++i) {
        s.cluster.read(*node, 0, false, s.random.one_in(2) ? s.random.below(s.shape.heartbeat_ms * 800) : 0);
      }
    }));
  }
  bool stop = false;
  const auto evicts = s.begin(owner, "evicts", [&] {
    while (!stop) {
      s.cluster.evict_some(owner);
      s.store(owner, 0);
      Machine::sleep_us(s.random.below(s.shape.heartbeat_ms * 400));
    }
  });
  // In the middle of lowering: just behind a store to the stamp.
  const std::uint32_t which = s.random.below(3);
  const HotDescriptor* hot = s.chunk_of(0, 0);
  if (hot && s.random.one_in(2)) {
    const auto slot = static_cast<std::uint32_t>(hot - s.cluster.memory().hot(0));
    s.when(s.cluster.memory().stamp(1, slot), 4,
           [&s, victim = nodes[which]](const Seen& seen) {
             return seen.stage == Seen::Stage::visible && seen.fiber != 0xffff &&
                    &s.world.fibers()[seen.fiber]->process == victim->process;
           },
           30, [&s, victim = nodes[which]] { s.cluster.kill(*victim); });
  } else {
    s.soon(4'000, [&s, victim = nodes[which]] { s.cluster.kill(*victim); });
  }
  for (int i = 0; i < 3; ++i) s.await(*nodes[i], reads[static_cast<std::size_t>(i)], "reading");
  stop = true;
  s.await(owner, evicts, "evicting");
  // Nobody holds anything now: the dead one's hold ends with its burial, or with the lease.
  bool gone = false;
  s.act(owner, [&] {
    for (int i = 0; i < 200 && !gone; ++i) {
      s.cluster.evict_some(owner);
      gone = !owner.pool->index.find_own(s.cluster.key(0).prints[0]);
      if (!gone) Machine::sleep_us(s.shape.heartbeat_ms * 1'000);
    }
  });
  s.expect(gone, "G4: a dead process pins no chunk");
}

/// A process is stopped in the middle of its heartbeat, another one beats meanwhile, and the first goes on: the host's
/// tick must not turn back, or stamps would look as if they came from the future.
/// Proven by it: the exchange of the tick in Heartbeat::publish.
void stopped_heartbeat(Stage& s) {
  Node& owner = s.join(0);
  Node& one = s.join(1);
  Node& two = s.join(1);
  auto newest = std::make_shared<std::uint32_t>(0);
  const HostHeartbeat* beat = &s.cluster.memory().host(1)->heartbeat;
  s.world.watch(s.world.offset(&beat->tick), 4, [&s, newest](const Seen& seen) {
    if (seen.stage != Seen::Stage::visible || seen.bytes != 4) return;
    const auto tick = static_cast<std::uint32_t>(seen.value);
    if (*newest != 0 && static_cast<std::int32_t>(tick - *newest) < 0) s.world.fail("G3: a host's tick turns back");
    *newest = tick;
  });
  s.act(owner, [&] { s.store_soon(owner, 0); });
  for (int round = 0; round < 3; ++round) {
    s.when(beat, kLine,
           [&s, &one](const Seen& seen) {
             return seen.stage == Seen::Stage::issued && &s.world.fibers()[seen.fiber]->process == one.process;
           },
           s.random.one_in(2) ? 0 : 6, [&] { s.world.pause_process(*one.process); });
    s.until([&] { return one.process->paused; }, s.shape.dead_after_ms);
    const auto reads = s.begin(two, "reads", [&] {
      for (int i = 0; i < 4; ++i) s.cluster.read(two, 0, false, s.random.below(s.shape.heartbeat_ms * 2'000));
    });
    const auto evicts = s.begin(owner, "evicts", [&] {
      for (int i = 0; i < 4; ++i) {
        s.cluster.evict_some(owner);
        s.store(owner, 0);
        Machine::sleep_us(s.shape.heartbeat_ms * 1'000);
      }
    });
    s.beats(1 + s.random.below(20));
    if (one.process->paused) s.world.resume_process(*one.process);
    s.await(two, reads, "reading");
    s.await(owner, evicts, "evicting");
  }
}

}  // namespace

std::vector<Scenario> process_scenarios() {
  ClusterShape lane;
  lane.buckets = 1;
  lane.extents = 2;
  lane.slots_per_extent = 8;
  lane.keys = 8;
  ClusterShape plain;
  plain.extents = 4;
  plain.keys = 8;
  ClusterShape dma = plain;
  dma.extents = 1;
  dma.slots_per_extent = 16;
  dma.slot_bytes = 512;
  dma.keys = 20;
  return {
      {"lane_writer_killed", "a process dies between the entry and READY, or between removal and FREE", lane, lane_writer_killed},
      {"killed_under_the_slot_lock", "a free list rebuilt under a popped slot", plain, killed_under_the_slot_lock},
      {"stopped_under_the_slot_lock", "the slot lock's holder is stopped", plain, stopped_under_the_slot_lock},
      {"reclaim_under_dma", "a process dies while its GPU writes", dma, reclaim_under_dma},
      {"stamp_of_several_processes", "the last holder dies while it lowers the host's stamp", plain, stamp_of_several_processes},
      {"stopped_heartbeat", "a process is stopped in the middle of a heartbeat", plain, stopped_heartbeat},
  };
}

}  // namespace sim
