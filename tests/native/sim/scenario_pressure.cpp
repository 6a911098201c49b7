#include "scenario.hpp"

/// Capacity flows to the host that needs it.
namespace sim {
namespace {

using namespace beluga;

/// Older than what a host has to be before it gives extents of chunks up: see Eviction::give_up.
constexpr std::uint64_t kColdMs = 1'200;

void fill_pool(Stage& s, Node& node, std::uint32_t from) {
  s.act(node, [&] {
    for (std::uint32_t i = 0; i < s.shape.extents * s.shape.slots_per_extent; ++i) s.store_soon(node, from + i, 3);
  });
}

/// Stores new keys, over and over, until `enough`.
void burst(Stage& s, Node& node, std::uint32_t from, const std::function<bool()>& enough) {
  std::uint32_t k = from;
  for (int i = 0; i < 4'000 && !enough() && !node.closed && !s.cluster.stopping(); ++i) {
    s.store(node, k);
    k = k + 1 < s.cluster.keys() ? k + 1 : from;
    if (i % 2) Machine::sleep_us(s.shape.heartbeat_ms * 300);
  }
}

/// Reads the keys [from, to) in a task of its own, over and over, until `stop`.
auto keep_reading(Stage& s, Node& node, std::uint32_t from, std::uint32_t to, const bool& stop) {
  return s.begin(node, "reads", [&s, &node, from, to, &stop] {
    while (!stop) {
      for (std::uint32_t k = from; k < to; ++k) s.cluster.read(node, k, false);
      Machine::sleep_us(s.shape.heartbeat_ms * 4'000);
    }
  });
}

/// A pool that one host has filled is later used by another, whose burst gets most of it.
/// Proven by it: Pressure::relieve, Eviction::note_shortage.
void filled_by_one(Stage& s) {
  Node& former = s.join(0);
  Node& next = s.join(1);
  fill_pool(s, former, 0);
  s.expect(s.owned_by(0) == s.shape.extents, "one host fills the pool");
  s.pass(kColdMs);
  const auto enough = [&] { return s.owned_by(1) + 1 >= s.shape.extents; };
  s.act(next, [&] { burst(s, next, 16, enough); });
  s.expect(enough(), "a burst on one host uses most of a pool that another one had filled");
  s.act(former, [&] { s.bustle(former, 10); });
}

/// Of two owners, the one whose chunks are colder gives; what others have read lately on a host of its own counts.
/// Proven by it: Pressure::relieve's `hottest`, the stamps of all hosts in slot_use.
void coldest_first(Stage& s) {
  Node& cold = s.join(0);
  Node& warm = s.join(1);
  Node& next = s.join(2);
  s.act(cold, [&] {
    for (std::uint32_t k = 0; k < 8; ++k) s.store_soon(cold, k);
  });
  s.act(warm, [&] {
    for (std::uint32_t k = 8; k < 16; ++k) s.store_soon(warm, k);
  });
  s.expect(s.owned_by(0) == 2 && s.owned_by(1) == 2, "two hosts share the pool");
  s.pass(kColdMs);
  // Before anybody presses: until they are read, one owner's chunks are as cold as the other's.
  s.act(warm, [&] {
    for (std::uint32_t k = 8; k < 16; ++k) s.cluster.read(warm, k, false);
  });
  bool stop = false;
  const auto reads = keep_reading(s, warm, 8, 16, stop);
  s.act(next, [&] { burst(s, next, 16, [&] { return s.owned_by(2) != 0; }); });
  s.expect(s.owned_by(2) != 0, "a third host gets an extent");
  s.expect(s.owned_by(1) == 2, "the coldest chunks of the whole pool go first");
  stop = true;
  s.await(warm, reads, "reading");
}

/// Host 1 joins a pool that is full of host 0's warm chunks, and stores.
void beside_a_warm_host(Stage& s, const std::function<void(Node& next)>& stores) {
  Node& former = s.join(0);
  Node& next = s.join(1);
  fill_pool(s, former, 0);
  bool stop = false;
  const auto reads = keep_reading(s, former, 0, 16, stop);
  stores(next);
  stop = true;
  s.await(former, reads, "reading");
}

/// A pool that is full of warm chunks: whoever joins gets an extent all the same, and no more than it needs to store.
/// Proven by it: `starving` in Pressure::relieve.
void joins_a_warm_pool(Stage& s) {
  beside_a_warm_host(s, [&](Node& next) {
    s.act(next, [&] { burst(s, next, 16, [&] { return s.owned_by(1) != 0; }); });
    s.expect(s.owned_by(1) != 0, "a host that has nothing gets an extent");
    s.beats(8);
    s.expect(s.owned_by(0) + 2 >= s.shape.extents, "warm chunks do not go for more");
  });
}

/// The same host stores one chunk now and then: by the next one there is an extent for it. However many processes beat
/// for it, as one does for each rank of an engine.
/// Proven by it: `starves` in Pressure::own_demand, and that demand fades by the clock.
void stores_seldom(Stage& s) {
  beside_a_warm_host(s, [&](Node& next) {
    for (std::uint32_t more = s.random.below(16); more != 0; --more) s.join(1);
    for (std::uint32_t k = 16; k < 19; ++k) {
      s.act(next, [&] { s.store(next, k); });
      s.beats(40);
    }
    s.expect(s.owned_by(1) != 0, "a host that stores seldom gets an extent");
    s.expect(s.owned_by(0) + 3 >= s.shape.extents, "warm chunks do not go for more");
  });
}

/// A host checks the pool while its extents go to another, which fills them: there is nothing wrong with them.
/// Proven by it: the second look in read_cold.
void checked_while_it_moves(Stage& s) {
  Node& former = s.join(0);
  Node& next = s.join(1);
  fill_pool(s, former, 0);
  s.pass(kColdMs);
  bool stop = false;
  const auto checks = s.begin(former, "checks", [&] {
    while (!stop && !s.cluster.stopping()) {
      s.cluster.check(former);
      Machine::sleep_us(s.shape.heartbeat_ms * 200);
    }
  });
  const auto enough = [&] { return s.owned_by(1) + 1 >= s.shape.extents; };
  const auto presses = s.begin(next, "presses", [&] { burst(s, next, 16, enough); });
  for (int i = 0; i < 400 && !enough(); ++i) {
    s.hold_back(former, "checks", s.random.below(40'000));
    s.pass(1 + s.random.below(s.shape.heartbeat_ms));
  }
  s.await(next, presses, "pressing");
  s.expect(enough(), "a burst on one host uses most of a pool that another one had filled");
  stop = true;
  s.await(former, checks, "checking");
}

/// The host that presses dies: nobody gives more than it had asked for, nobody waits, and what it got is its own until
/// it comes back.
/// Proven by it: `judge(h).live` in Pressure::relieve.
void pressing_host_dies(Stage& s) {
  Node& former = s.join(0);
  Node& next = s.join(1);
  fill_pool(s, former, 0);
  s.pass(kColdMs);
  const auto presses = s.begin(next, "presses", [&] { burst(s, next, 16, [] { return false; }); });
  s.beats(s.random.below(12));
  s.cluster.kill_all(1);
  s.pass(s.shape.dead_after_ms + 4 * s.shape.heartbeat_ms);
  const std::uint32_t left = s.owned_by(0);
  s.pass(2 * s.shape.dead_after_ms);
  s.expect(s.owned_by(0) == left, "nobody gives way to the dead");
  s.act(former, [&] { s.bustle(former, 10); });
  Node& back = s.join(1);
  s.act(back, [&] { s.bustle(back, 10); });
}

}  // namespace

std::vector<Scenario> pressure_scenarios() {
  ClusterShape two;
  two.buckets = 8;
  two.keys = 32;
  ClusterShape three = two;
  three.hosts = 3;
  return {
      {"filled_by_one", "a pool filled by one host is later used by another", two, filled_by_one},
      {"joins_a_warm_pool", "a host that joins a pool full of warm chunks can store", two, joins_a_warm_pool},
      {"stores_seldom", "so can one that tries only now and then", two, stores_seldom},
      {"checked_while_it_moves", "a host checks the pool while extents change hands", two, checked_while_it_moves},
      {"coldest_first", "the colder of two owners gives way to a third host", three, coldest_first},
      {"pressing_host_dies", "the host that needs space dies", two, pressing_host_dies},
  };
}

}  // namespace sim
