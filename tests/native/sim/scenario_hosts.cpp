#include "scenario.hpp"

/// Host ids: two machines with one, joining, dying, coming back, being retired by another machine.
namespace sim {
namespace {

using namespace beluga;

/// DESIGN 6, "attach": two machines want one host id at the same moment, neither with a lock that could tell them
/// apart. Of those that found a free page at most one may go on.
/// Proven by it: `identity / check` (the nonce is looked at again after dead_after).
void two_machines(Stage& s) {
  Node& third = s.join(0);
  const auto lives = s.begin(third, "lives", [&] { s.bustle(third, 30); });
  Node& one = s.cluster.start_on(1, 1, [](Node&) {}, false);
  s.pass(s.random.below(2 * s.shape.dead_after_ms));
  Node& two = s.cluster.start_on(2, 1, [](Node&) {}, false);
  const auto settled = [](const Node& n) { return n.usable || n.closed; };
  s.until([&] { return settled(one) && settled(two); }, 8 * s.shape.dead_after_ms);
  s.expect(settled(one) && settled(two), "G5: attaching ends");
  // Whoever lost after it had begun finds out at its next heartbeat.
  s.beats(6);
  s.expect(!(Stage::up(one) && Stage::up(two)), "two machines do not share a host id");
  s.expect(Stage::up(one) || Stage::up(two) || !one.refusal.empty() || !two.refusal.empty(), "the loser is told why");
  for (Node* node : {&one, &two}) {
    if (Stage::up(*node)) s.act(*node, [&, node] { s.bustle(*node, 20); });
  }
  s.await(third, lives, "a third host's work");
}

/// A machine stands still, another one takes its host id over, and the first wakes up as a zombie: it must stop for
/// ever at its next heartbeat, and store nothing before. (One that stood still in the middle of a store or of a
/// heartbeat may still carry out the next store to memory: that is why an operator has to fence it.)
/// Proven by it: `identity / check` at the heartbeat, PoolProcess::still_ours() before a store.
void zombie_machine(Stage& s) {
  Node& other = s.join(0);
  Node& first = s.join(1);
  s.act(first, [&] {
    for (std::uint32_t k = 0; k < 4; ++k) s.store(first, k);
  });
  std::shared_ptr<Lease> lease;
  s.act(first, [&] { lease = s.cluster.lease(first, 0); });
  s.until_idle(first);
  s.world.pause_host(s.cluster.machine(1), Clock::runs);
  s.pass(s.shape.dead_after_ms + s.random.below(s.shape.dead_after_ms));
  Node& second = s.join_on(2, 1, false);
  s.expect(Stage::up(second), "a silent host's id can be taken over");
  if (s.failed()) return;
  s.act(second, [&] {
    for (std::uint32_t k = 0; k < 4; ++k) s.cluster.read(second, k, false);
    s.bustle(second, 20);
  });
  const auto lives = s.begin(second, "lives", [&] { s.bustle(second, 30); });
  const auto zombie = s.begin(first, "zombie", [&] {
    for (int i = 0; i < 6 && !first.closed; ++i) {
      if (lease) s.cluster.transfer(first, 0, *lease, s.random.one_in(2));
      s.store(first, s.random.below(s.cluster.keys()));
      s.cluster.evict_some(first);
    }
    if (lease) s.cluster.release(first, lease);
  });
  if (s.random.one_in(2)) s.hold_back(first, "beat1", 2'000);
  s.world.resume_host(s.cluster.machine(1));
  s.until([&] { return first.closed; }, 4 * s.shape.dead_after_ms);
  s.expect(first.closed, "a zombie stops for ever");
  s.await(first, zombie, "a zombie's work");
  s.cluster.kill(first);
  s.await(second, lives, "the successor's work");
  s.expect(Stage::up(second), "a zombie does not end its successor");
  s.act(other, [&] { s.bustle(other, 10); });
}

/// Whoever comes second while the first beats is told so.
/// Proven by it: Joining::beats().
void host_in_use(Stage& s) {
  s.join(0);
  Node& first = s.join(1);
  const auto lives = s.begin(first, "lives", [&] { s.bustle(first, 30); });
  Node& second = s.join_on(2, 1, false);
  s.expect(second.closed && second.refusal.find("beats") != std::string::npos, "a beating host's id is refused");
  s.await(first, lives, "a host's work");
  s.beats(3);
  s.expect(Stage::up(first), "who was first stays");
}

/// DESIGN 6, "lookup": a host joins while others look up. What it commits is found by all, from the first commit on; also
/// by a process that stood still while the joiner waited.
/// Proven by it: `identity / check` (Hosts::keep_active_fresh).
void joiner(Stage& s) {
  Node& old = s.join(0);
  Node& sleeper = s.random.one_in(2) ? s.join(0) : s.join(2);
  bool paused = s.random.one_in(2);
  if (paused) s.world.pause_process(*sleeper.process);
  const auto looks = s.begin(old, "looks", [&] {
    for (int i = 0; i < 40; ++i) {
      s.cluster.lookup(old, 0);
      Machine::sleep_us(s.random.below(s.shape.heartbeat_ms * 700));
    }
  });
  Node& fresh = s.join(1);
  s.act(fresh, [&] { s.expect(s.store_soon(fresh, 0), "an empty pool has room"); });
  const auto late = s.begin(sleeper, "late", [&] {
    for (int i = 0; i < 5; ++i) {
      s.cluster.lookup(sleeper, 0);
      s.cluster.read(sleeper, 0, false);
    }
  });
  if (paused) {
    s.hold_back(sleeper, "beat" + std::to_string(sleeper.host), 400);
    s.world.resume_process(*sleeper.process);
  }
  s.await(sleeper, late, "a late lookup");
  s.await(old, looks, "lookups");
}

/// DESIGN 6, "death": a dead host's chunks stay readable, its extents its own, until it is there again; then it finds its
/// chunks (G8). Meanwhile others store into what is free.
/// Proven by it: Extents::strongest_rival (an OWNED claim of a dead host wins), Recovery::recover_extents.
void dead_hosts_chunks(Stage& s) {
  Node& other = s.join(0);
  Node& owner = s.join(1);
  std::uint32_t committed = 0;
  s.act(owner, [&] {
    for (std::uint32_t k = 0; k < 6; ++k) committed += s.store_soon(owner, k);
  });
  const bool power = s.random.one_in(2);
  power ? s.cluster.power_cycle(1) : s.cluster.kill_all(1);
  s.pass(2 * s.shape.dead_after_ms);
  const std::uint32_t owned = s.owned_by(1);
  s.expect(owned != 0 && committed == 6, "the owner had stored");
  std::uint32_t hits = 0;
  s.act(other, [&] {
    for (std::uint32_t k = 0; k < 6; ++k) hits += s.cluster.read(other, k, s.random.one_in(2));
    for (std::uint32_t k = 6; k < s.cluster.keys(); ++k) s.store(other, k);
    for (std::uint32_t k = 0; k < 6; ++k) s.cluster.remove(other, k);  // a wish, until the owner is back
    for (std::uint32_t k = 6; k < s.cluster.keys(); ++k) s.store(other, k);
  });
  s.expect(hits == 6, "a dead host's chunks stay readable");
  s.expect(s.owned_by(1) == owned, "a dead host's extents stay its own");
  Node& back = s.join(1);
  s.act(back, [&] {
    for (std::uint32_t k = 0; k < s.cluster.keys(); ++k) s.cluster.read(back, k, false);
    s.bustle(back, 10);
  });
}

/// DESIGN 6, "retire": a host is dead for good. Another machine takes its id over, drains its extents with CLOSING and
/// stamps while others read them, and leaves. Its space belongs to all then, and the retired machine, when it wakes
/// after all, touches nothing.
/// Proven by it: PoolProcess::retire() with Eviction::close, `identity / check`, PoolProcess::still_ours().
void retired_by_another_machine(Stage& s) {
  Node& other = s.join(0);
  Node& dead = s.join(1);
  s.act(dead, [&] {
    for (std::uint32_t k = 0; k < s.cluster.keys(); ++k) s.store(dead, k);
  });
  const bool wakes = s.random.one_in(2);
  if (wakes) {
    s.until_idle(dead);
    s.world.pause_host(s.cluster.machine(1), Clock::runs);
  } else {
    s.cluster.kill_all(1);
  }
  s.pass(s.shape.dead_after_ms);
  const auto reads = s.begin(other, "reads", [&] {
    for (int i = 0; i < 20; ++i) {
      s.cluster.read(other, s.random.below(s.cluster.keys()), false, s.random.below(s.shape.heartbeat_ms * 2'000));
    }
  });
  Node& operator_ = s.join_on(2, 1, false);
  s.expect(Stage::up(operator_), "a dead host's id can be taken over");
  if (s.failed()) return;
  bool retired = false;
  s.act(operator_, [&] {
    for (int i = 0; i < 400 && !retired; ++i) {
      retired = operator_.pool->retire();
      s.cluster.oracle().operation_ended();
      if (!retired) Machine::sleep_us(s.shape.heartbeat_ms * 1'000);
    }
    operator_.closed = true;
  });
  s.expect(retired, "a host can be retired while others read");
  s.expect(s.owned_by(1, 2) == 0, "a retired host owns nothing");
  s.await(other, reads, "reading a host that is retired");
  std::uint32_t stored = 0;
  s.act(other, [&] {
    for (std::uint32_t k = 0; k < s.cluster.keys(); ++k) stored += s.store_soon(other, k);
  });
  s.expect(stored == s.cluster.keys(), "its space belongs to all");
  if (!wakes) return;
  const auto zombie = s.begin(dead, "zombie", [&] {
    for (int i = 0; i < 6 && !dead.closed; ++i) {
      s.store(dead, s.random.below(s.cluster.keys()));
      s.cluster.evict_some(dead);
    }
  });
  if (s.random.one_in(2)) s.hold_back(dead, "beat1", 2'000);
  s.world.resume_host(s.cluster.machine(1));
  s.until([&] { return dead.closed; }, 4 * s.shape.dead_after_ms);
  s.expect(dead.closed, "a retired machine stops for ever");
  s.await(dead, zombie, "a zombie's work");
  s.cluster.kill(dead);
  s.act(other, [&] {
    for (std::uint32_t k = 0; k < s.cluster.keys(); ++k) s.cluster.read(other, k, false);
  });
}

}  // namespace

std::vector<Scenario> host_scenarios() {
  ClusterShape pair;
  pair.spares = 1;
  pair.extents = 4;
  pair.keys = 8;
  ClusterShape three = pair;
  three.hosts = 3;
  three.spares = 0;
  ClusterShape full = pair;
  full.keys = 14;
  return {
      {"two_machines", "two machines with one host id attach at once", pair, two_machines},
      {"zombie_machine", "a machine wakes whose host id has been taken over", pair, zombie_machine},
      {"host_in_use", "a second machine with the id of one that beats", pair, host_in_use},
      {"joiner", "a host joins; its first commit is found, also by who slept", three, joiner},
      {"dead_hosts_chunks", "a dead host's chunks stay readable and its extents its own", full, dead_hosts_chunks},
      {"retired_by_another_machine", "takeover, drain, leave; the retired zombie wakes", full, retired_by_another_machine},
  };
}

}  // namespace sim
