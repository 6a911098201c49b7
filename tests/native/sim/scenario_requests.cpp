#include "scenario.hpp"

/// Remove and clear, asked for by a host that is not the owner.
namespace sim {
namespace {

using namespace beluga;

/// An owner acts on what it is asked at its heartbeats: the right chunk goes, and no later one in its slot. It may die
/// before it has, and act when it is back.
/// Proven by it: `request / confirm: flush`, `request_head / observe: flush`; the generation in Requests::act.
void removed_by_another(Stage& s) {
  Node& owner = s.join(0);
  Node& other = s.join(1);
  s.act(owner, [&] {
    for (std::uint32_t k = 0; k < 6; ++k) s.store_soon(owner, k);
  });
  const bool dies = s.random.one_in(2);
  if (dies && s.random.one_in(2)) s.soon(600, [&] { s.cluster.kill(owner); });
  s.act(other, [&] {
    for (std::uint32_t k = 0; k < 3; ++k) s.cluster.remove(other, k);
  });
  if (dies) {
    s.cluster.kill_all(0);
    s.pass(s.random.below(2 * s.shape.dead_after_ms));
  }
  Node& now = dies ? s.join(0) : owner;
  const auto gone = [&] {
    for (std::uint32_t k = 0; k < 3; ++k) {
      if (s.chunk_of(0, k)) return false;
    }
    return true;
  };
  s.until(gone, 4 * s.shape.dead_after_ms);
  s.expect(gone(), "what another host wants gone goes");
  std::uint32_t kept = 0;
  for (std::uint32_t k = 3; k < 6; ++k) kept += s.chunk_of(0, k) != nullptr;
  s.expect(kept == 3, "and nothing else");
  // The same keys stored again are other chunks: an old wish is not for them.
  s.act(now, [&] {
    for (std::uint32_t k = 0; k < 3; ++k) s.store_soon(now, k);
  });
  s.beats(6);
  for (std::uint32_t k = 0; k < 3; ++k) s.expect(s.chunk_of(0, k) != nullptr, "a request names one chunk");
  if (dies) {  // not even after a restart
    s.cluster.kill_all(0);
    s.join(0);
    s.beats(6);
    for (std::uint32_t k = 0; k < 3; ++k) s.expect(s.chunk_of(0, k) != nullptr, "a request is acted on once");
  }
}

/// Every host clears when one asks.
void cleared_by_another(Stage& s) {
  Node& owner = s.join(0);
  Node& other = s.join(1);
  for (Node* node : {&owner, &other}) {
    s.act(*node, [&, node] {
      for (std::uint32_t k = 0; k < 3; ++k) s.store_soon(*node, node->host * 3 + k);
    });
  }
  s.act(other, [&] {
    other.pool->clear();
    s.cluster.oracle().operation_ended();
  });
  const auto gone = [&] {
    for (std::uint32_t k = 0; k < 6; ++k) {
      if (s.chunk_of(k / 3, k)) return false;
    }
    return true;
  };
  s.until(gone, 4 * s.shape.dead_after_ms);
  s.expect(gone(), "a pool is cleared on every host");
  s.act(owner, [&] { s.expect(s.store_soon(owner, 0), "and can be used again"); });
}

/// More requests than the ring holds, to an owner that stands still: until it is judged dead, whoever asks is refused
/// after a bounded wait; then nobody waits for it. When it wakes, or is started again, it acts on what is left of the
/// ring, and everything goes on.
/// Proven by it: `judge().live` in Requests::has_room, the skip of overwritten entries in serve_host,
/// `acknowledge / observe: flush`.
void full_ring(Stage& s) {
  Node& owner = s.join(0);
  Node& other = s.join(1);
  s.act(owner, [&] { s.store_soon(owner, 0); });
  const bool dead = s.random.one_in(2);
  if (dead) {
    s.cluster.kill_all(0);
  } else {
    s.world.pause_host(s.cluster.machine(0), Clock::runs);
  }
  if (s.random.one_in(2)) s.pass(2 * s.shape.dead_after_ms);
  using Operation = Requests<V>::Operation;
  std::uint32_t refused = 0;
  s.act(other, [&] {
    for (std::uint32_t i = 0; i < kRingEntries + 8; ++i) {
      // Some slot in a generation that never was.
      const bool asked = other.pool->requests.ask(Operation::remove, 0, 1'000'000 + i, s.shape.heartbeat_ms);
      refused += !asked;
      if (!asked) break;
    }
    // Once it is judged dead there is room.
    bool asked = false;
    for (int i = 0; i < 40 && !asked; ++i) {
      asked = other.pool->requests.ask(Operation::remove, 0, 2'000'000, s.shape.heartbeat_ms);
      if (!asked) Machine::sleep_us(s.shape.heartbeat_ms * 1'000);
    }
    s.expect(asked, "G5: a dead owner's ring does not fill for ever");
  }, 60 * s.shape.dead_after_ms);
  if (dead) {
    s.join(0);
  } else {
    s.world.resume_host(s.cluster.machine(0));
  }
  s.beats(8);
  const HotDescriptor* hot = s.chunk_of(0, 0);
  s.expect(hot != nullptr, "no request named this chunk");
  s.act(other, [&] { s.cluster.remove(other, 0); });
  const auto gone = [&] { return s.chunk_of(0, 0) == nullptr; };
  s.until(gone, 4 * s.shape.dead_after_ms);
  s.expect(gone(), "an owner that is back acts on requests again");
}

}  // namespace

std::vector<Scenario> request_scenarios() {
  ClusterShape two;
  two.keys = 8;
  return {
      {"removed_by_another", "a host that is not the owner removes; the owner may die first", two, removed_by_another},
      {"cleared_by_another", "a host clears the whole pool", two, cleared_by_another},
      {"full_ring", "the ring of requests is full, its reader dead or stopped", two, full_ring},
  };
}

}  // namespace sim
