#include "scenario.hpp"

/// Judging a host dead, and the fence that makes it right: paused hosts, paused readers, leases that ran out.
namespace sim {
namespace {

using namespace beluga;

constexpr std::uint32_t kKey = 0;

/// The owner uses every slot again.
void evict_and_reuse(Stage& s, Node& owner, const bool& stop) {
  std::uint32_t k = 1;
  while (!stop && !owner.closed) {
    s.cluster.evict_some(owner);
    s.store(owner, k);
    k = 1 + k % (s.cluster.keys() - 1);
    if (s.random.one_in(3)) Machine::sleep_us(s.random.below(s.shape.heartbeat_ms * 300));
  }
}

/// DESIGN 6, "death": the owner has judged the reader's host dead, and keeps that verdict; the host comes back and
/// leases; the owner evicts. Only the clock that is read after CLOSING counts.
/// Proven by it: `heartbeat / observe: flush` (in slot_use after CLOSING), `stamp / confirm: flush`.
void stale_verdict(Stage& s) {
  Node& owner = s.join(0);
  Node& reader = s.join(1);
  s.act(owner, [&] { s.expect(s.store_soon(owner, kKey), "an empty pool has room"); });
  s.world.pause_host(s.cluster.machine(1), Clock::runs);
  s.act(owner, [&] {
    while (owner.pool->hosts.clock_of(1).live) Machine::sleep_us(s.shape.heartbeat_ms * 1'000);
  });
  bool stop = false;
  s.world.resume_host(s.cluster.machine(1));
  // Once it has beaten again it may lease.
  s.until([&] { return !reader.pool->context.late(); }, s.shape.dead_after_ms);
  const auto reads = s.begin(reader, "reads", [&] {
    for (int i = 0; i < 10; ++i) {
      s.cluster.read(reader, s.random.below(3), s.random.one_in(2), s.random.below(s.shape.heartbeat_ms * 3'000));
    }
  });
  const auto evicts = s.begin(owner, "evicts", [&] { evict_and_reuse(s, owner, stop); });
  s.await(reader, reads, "reading");
  stop = true;
  s.await(owner, evicts, "evicting");
}

/// The reader holds a lease, its host stands still for longer than dead_after (SIGSTOP: the clock runs), its chunk is
/// evicted and the slot used again. It wakes: heartbeat first, or reader first. Either way it must not trust the lease.
/// Proven by it: `lease_epoch / check` when the heartbeat wakes first; HostContext::late() when the reader does.
void paused_reader(Stage& s) {
  Node& owner = s.join(0);
  Node& reader = s.join(1);
  s.act(owner, [&] { s.expect(s.store_soon(owner, kKey), "an empty pool has room"); });
  std::shared_ptr<Lease> lease;
  s.act(reader, [&] { lease = s.cluster.lease(reader, kKey); });
  if (!lease) return;
  bool stop = false;
  const auto evicts = s.begin(owner, "evicts", [&] { evict_and_reuse(s, owner, stop); });
  s.beats(s.random.below(3));
  // It may be stopped in the middle of a transfer, which goes on when it wakes.
  const auto reads = s.begin(reader, "reads", [&] {
    for (int i = 0; i < 6; ++i) {
      s.cluster.transfer(reader, kKey, *lease, s.random.one_in(2));
      Machine::sleep_us(s.random.below(200));
    }
    s.cluster.release(reader, lease);
  });
  s.pass(s.random.below(2));
  s.world.pause_host(s.cluster.machine(1), Clock::runs);
  s.pass(s.shape.dead_after_ms + s.random.below(2 * s.shape.dead_after_ms));
  const bool heartbeat_first = s.random.one_in(2);
  s.hold_back(reader, heartbeat_first ? "reads" : "beat1", 300);
  s.world.resume_host(s.cluster.machine(1));
  s.await(reader, reads, "reading");
  stop = true;
  s.await(owner, evicts, "evicting");
}

/// The same with a virtual machine whose clock stood still: it cannot know, until it sees the others' clocks. What its
/// reader copies before the next heartbeat is protected by the look after the transfer alone.
/// Proven by it: `freed / observe: flush` (the look after a transfer), `lease_epoch / check`.
void paused_machine(Stage& s) {
  Node& owner = s.join(0);
  Node& reader = s.join(1);
  s.act(owner, [&] { s.expect(s.store_soon(owner, kKey), "an empty pool has room"); });
  std::shared_ptr<Lease> lease;
  s.act(reader, [&] { lease = s.cluster.lease(reader, kKey); });
  if (!lease) return;
  bool stop = false;
  const auto evicts = s.begin(owner, "evicts", [&] { evict_and_reuse(s, owner, stop); });
  const auto reads = s.begin(reader, "reads", [&] {
    for (int i = 0; i < 12; ++i) {
      s.cluster.transfer(reader, kKey, *lease, s.random.one_in(2));
      if (s.random.one_in(2)) Machine::sleep_us(s.random.below(400));
    }
    s.cluster.release(reader, lease);
  });
  s.pass(s.random.below(2));
  s.cluster.oracle().clock_stood(1);
  s.world.pause_host(s.cluster.machine(1), Clock::stops);
  s.pass(s.shape.dead_after_ms + s.random.below(s.shape.dead_after_ms));
  if (s.random.one_in(2)) s.hold_back(reader, "beat1", 500);
  s.world.resume_host(s.cluster.machine(1));
  s.await(reader, reads, "reading");
  stop = true;
  s.await(owner, evicts, "evicting");
}

/// One process of a host is stopped while it holds a lease; another keeps the host alive. The lease runs out, the chunk
/// goes, and the stopped process wakes in its heartbeat: too late to prolong, it has to look at the descriptor again.
/// Proven by it: `renewal / check`.
void renewal_after_expiry(Stage& s) {
  Node& owner = s.join(0);
  Node& reader = s.join(1);
  s.join(1);  // beats meanwhile
  s.act(owner, [&] { s.expect(s.store_soon(owner, kKey), "an empty pool has room"); });
  std::shared_ptr<Lease> lease;
  s.act(reader, [&] { lease = s.cluster.lease(reader, kKey); });
  if (!lease) return;
  bool stop = false;
  const auto evicts = s.begin(owner, "evicts", [&] { evict_and_reuse(s, owner, stop); });
  // Stopped somewhere in a heartbeat that is about to renew.
  s.pass(s.shape.lease_ms / 2 - s.shape.heartbeat_ms + s.random.below(2 * s.shape.heartbeat_ms));
  bool paused = false;
  s.soon(400, [&] {
    s.world.pause_process(*reader.process);
    paused = true;
  });
  s.until([&] { return paused; }, s.shape.lease_ms);
  s.pass(s.shape.lease_ms + s.random.below(s.shape.lease_ms));
  s.world.resume_process(*reader.process);
  const auto reads = s.begin(reader, "reads", [&] {
    for (int i = 0; i < 10; ++i) {
      s.cluster.transfer(reader, kKey, *lease, false);
      Machine::sleep_us(s.random.below(s.shape.heartbeat_ms * 400));
    }
    s.cluster.release(reader, lease);
  });
  s.await(reader, reads, "reading");
  stop = true;
  s.await(owner, evicts, "evicting");
}

}  // namespace

std::vector<Scenario> verdict_scenarios() {
  ClusterShape two;
  two.extents = 1;
  two.slots_per_extent = 16;
  two.keys = 10;
  ClusterShape tight = two;
  tight.extents = 4;
  tight.slots_per_extent = 4;
  return {
      {"stale_verdict", "a host that was judged dead comes back and leases", tight, stale_verdict},
      {"paused_reader", "a stopped reader wakes after its host was judged dead; its heartbeat first, or not", tight, paused_reader, 60},
      {"paused_machine", "a virtual machine was paused with its clock", tight, paused_machine, 60},
      {"renewal_after_expiry", "a stopped process renews what ran out meanwhile", tight, renewal_after_expiry},
  };
}

}  // namespace sim
