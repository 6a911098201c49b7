#include <chrono>
#include <thread>

#include "small_pool.hpp"

using namespace beluga;
using namespace small_pool;

namespace {

constexpr std::uint32_t kMax = 120'000;
constexpr std::uint32_t kWrap = 0xffffffff;

// A stamp is live while the tick has not reached it, for at most the longest lease.
static_assert(!stamp_is_live(0, 0, kMax));
static_assert(!stamp_is_live(0, kWrap, kMax));  // 0 is none, also where it would be one tick ahead
static_assert(stamp_is_live(101, 100, kMax));
static_assert(!stamp_is_live(100, 100, kMax));
static_assert(!stamp_is_live(99, 100, kMax));
static_assert(stamp_is_live(100 + kMax, 100, kMax));
static_assert(!stamp_is_live(101 + kMax, 100, kMax));
// Across the wrap.
static_assert(stamp_is_live(5, kWrap - 5, kMax));
static_assert(!stamp_is_live(kWrap - 5, 5, kMax));
static_assert(stamp_is_live(kMax - 1, kWrap, kMax));
static_assert(!stamp_is_live(kMax + 1, kWrap, kMax));
// Half a clock away: garbage, or older than the clock can say.
static_assert(!stamp_is_live(0x8000'0000, 1, kMax));
static_assert(!stamp_is_live(0x7fff'ffff, 1, kMax));
static_assert(!stamp_is_live(1, 0x8000'0001, kMax));

void the_tick_is_never_zero(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const std::uint64_t base = p.context.header().tick_base;
  CHECK_EQ(p.context.tick_at(base + (std::uint64_t{1} << 32)), 1u);
  CHECK_EQ(p.context.tick_at(base + (std::uint64_t{1} << 32) + 2), 2u);
  CHECK_EQ(p.context.tick_at(base + kWrap), kWrap);
}

/// A lease that ends after the wrap holds before it, and one made before it does not come alive
/// again.
void leases_outlive_the_wrap(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  p.context.header().tick_base = boot_ms() - (kWrap - 50);
  const std::uint32_t slot = p.put("key");
  const auto lease = p.lease("key");
  CHECK(lease);
  const std::uint32_t stamp = *p.pool->stamp(0, slot);
  CHECK(stamp != 0 && stamp < kMax);  // beyond the wrap
  CHECK(!p.evict(slot));
  std::this_thread::sleep_for(std::chrono::milliseconds(80));
  CHECK(p.context.tick() < kMax);  // the clock has wrapped
  CHECK(!p.evict(slot));
  CHECK(p.leases.valid(*lease));
  p.leases.release(lease);
  CHECK(p.evict(slot));
}

void a_stale_stamp_is_zeroed_before_it_looks_alive(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const std::uint32_t slot = p.put("key");
  const std::uint32_t now = p.context.tick();
  *p.pool->stamp(0, slot) = now - (1u << 30) - 1000;
  p.upkeep.scrub(1000);
  CHECK_EQ(*p.pool->stamp(0, slot), 0u);
  *p.pool->stamp(0, slot) = now - 1000;
  p.upkeep.scrub(1000);
  CHECK_EQ(*p.pool->stamp(0, slot), now - 1000);
}

/// A host is dead once its tick has stood still for dead_after; until then its leases count.
void the_dead_hold_no_leases(const std::string& directory) {
  const auto pool = format(directory + "/pool", 2);
  Process a(pool, directory, 0, 1, true, 1500);
  Process b(pool, directory, 1, 1, true, 1500);
  a.hosts.refresh_active();
  const std::uint32_t slot = a.put("key");
  CHECK(b.lease("key"));
  CHECK(a.hosts.clock_of(1).live);
  CHECK(!a.evict(slot));
  std::this_thread::sleep_for(std::chrono::milliseconds(800));
  b.beat();
  CHECK(!a.evict(slot));
  std::this_thread::sleep_for(std::chrono::milliseconds(900));
  CHECK(!a.evict(slot));  // longer than dead_after since the start, not since the beat
  std::this_thread::sleep_for(std::chrono::milliseconds(1000));
  CHECK(!a.evict(slot));  // nobody is dead to a host that has not beaten since
  while (!a.evict(slot)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    a.beat();
  }
  CHECK(!a.hosts.clock_of(1).live);
}

/// Threads look at clocks at once; one of them may have taken the time before another saw the tick move.
void a_look_that_was_overtaken_kills_nobody(const std::string& directory) {
  const auto pool = format(directory + "/pool", 2);
  Process a(pool, directory, 0);
  Process b(pool, directory, 1);
  b.beat();
  a.context.header().last_beat -= 5;  // as if it had been read before the tick was first seen
  CHECK(a.hosts.clock_of(1).live);
  CHECK_EQ(a.hosts.clock_of(1).silent_ms, 0u);
}

void a_dead_hosts_clock_goes_on_in_the_eyes_of_others(const std::string& directory) {
  const auto pool = format(directory + "/pool", 2);
  Process a(pool, directory, 0);
  Process b(pool, directory, 1);
  const std::uint32_t last = a.hosts.clock_of(1).tick;
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  CHECK_EQ(a.hosts.clock_of(1).tick, last);
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  a.beat();
  CHECK(a.hosts.clock_of(1).tick >= last + 300);  // its chunks grow old too
  b.beat();
  CHECK(a.hosts.clock_of(1).live);
}

void recency_is_the_newest_use_of_any_host(const std::string& directory) {
  const auto pool = format(directory + "/pool", 2);
  Process a(pool, directory, 0);
  Process b(pool, directory, 1);
  a.hosts.refresh_active();
  const std::uint32_t slot = a.put("key");
  const std::uint32_t born = a.pool->hot(slot)->born;
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  b.beat();
  CHECK(slot_use(a.context, a.hosts, slot, born).idle_ms >= 50);
  b.leases.touch(slot);
  const SlotUse touched = slot_use(a.context, a.hosts, slot, born);
  CHECK(touched.idle_ms < 50);
  CHECK(!touched.leased);
  *a.pool->stamp(1, slot) = 0x8000'0000;  // garbage is no use
  CHECK(!slot_use(a.context, a.hosts, slot, born).leased);
}

void run(const std::string& directory) {
  the_tick_is_never_zero(directory);
  leases_outlive_the_wrap(directory);
  a_stale_stamp_is_zeroed_before_it_looks_alive(directory);
  the_dead_hold_no_leases(directory);
  a_look_that_was_overtaken_kills_nobody(directory);
  a_dead_hosts_clock_goes_on_in_the_eyes_of_others(directory);
  recency_is_the_newest_use_of_any_host(directory);
}

}  // namespace

int main() { return scratch::run(run); }
