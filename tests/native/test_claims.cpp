#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "small_pool.hpp"

using namespace beluga;
using namespace small_pool;

namespace {

void set(const PoolMemory& pool, std::uint32_t host, std::uint32_t extent, Claim claim) {
  Policy::store(pool.claims(host) + extent, static_cast<std::uint8_t>(claim));
}

bool unclaimed(const Process& process, std::uint32_t extent) {
  const auto free = process.extents.unclaimed();
  return std::find(free.begin(), free.end(), extent) != free.end();
}

/// The clock of a host that will not be heard of again.
void kill(Process& observer, std::uint32_t host) {
  while (observer.hosts.clock_of(host).live) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    observer.beat();
  }
}

void a_free_extent_is_claimed_once(const std::string& directory) {
  const auto pool = format(directory + "/pool", 2);
  Process a(pool, directory, 0);
  Process b(pool, directory, 1);
  CHECK(unclaimed(a, 3));
  CHECK(a.extents.claim(3));
  CHECK(a.extents.claim_of(0, 3) == Claim::owned);
  CHECK(!unclaimed(b, 3));
  CHECK(!b.extents.claim(3));
  CHECK(b.extents.claim_of(1, 3) == Claim::none);  // withdrawn
  a.extents.cut(3, 4);
  a.extents.release(3);
  CHECK(b.extents.claim(3));
  CHECK(!a.extents.claim(3));
}

/// What a rival has got to decides, and whether he lives.
void rivals(const std::string& directory) {
  struct Case {
    std::uint32_t rival;
    Claim claim;
    bool alive;
    bool won;
  };
  // The claimant is host 1.
  const Case cases[] = {
      {0, Claim::claiming, true, false},  // a lower host is first
      {0, Claim::claiming, false, true},  // the dead block nobody
      {2, Claim::claiming, false, true},
      {2, Claim::claiming, true, false},  // waited for; this one never goes
      {0, Claim::settled, true, false},
      {0, Claim::settled, false, false},  // may come back believing that it owns
      {2, Claim::settled, false, false},
      {0, Claim::owned, false, false},  // owned until it is released or retired
      {2, Claim::owned, true, false},
  };
  for (const Case& c : cases) {
    const auto pool = format(directory + "/pool", 3);
    Process me(pool, directory, 1);
    Process other(pool, directory, c.rival);
    me.hosts.refresh_active();
    CHECK(me.hosts.clock_of(c.rival).live);
    if (!c.alive) kill(me, c.rival);
    set(*pool, c.rival, 2, c.claim);
    CHECK_EQ(me.extents.claim(2), c.won);
    CHECK(me.extents.claim_of(1, 2) == (c.won ? Claim::owned : Claim::none));
    CHECK(me.extents.claim_of(c.rival, 2) == c.claim);  // nobody writes another's claims
  }
}

void a_higher_rival_that_withdraws_is_waited_for(const std::string& directory) {
  const auto pool = format(directory + "/pool", 3);
  Process me(pool, directory, 1);
  Process other(pool, directory, 2);
  me.hosts.refresh_active();
  set(*pool, 2, 2, Claim::claiming);
  std::thread withdraws([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    set(*pool, 2, 2, Claim::none);
  });
  CHECK(me.extents.claim(2));
  withdraws.join();
}

void garbage_is_no_claim_to_take(const std::string& directory) {
  const auto pool = format(directory + "/pool", 2);
  Process a(pool, directory, 0);
  set(*pool, 1, 2, static_cast<Claim>(77));
  CHECK(!unclaimed(a, 2));
  CHECK(!a.extents.claim(2));
}

/// Four hosts claim and release the same few extents at once: each has one owner at most.
void no_extent_has_two_owners(const std::string& directory) {
  constexpr std::uint32_t kHosts = 4;
  const auto pool = format(directory + "/pool", kHosts, 2 << 20);
  std::vector<std::unique_ptr<Process>> hosts;
  for (std::uint32_t h = 0; h < kHosts; ++h) {
    hosts.push_back(std::make_unique<Process>(pool, directory, h, 1, true, 60'000));
  }
  const std::uint32_t extents = std::min(pool->sb().extents, 3u);
  std::vector<std::atomic<int>> owners(extents);
  std::atomic<int> claimed{0};
  std::vector<std::thread> threads;
  for (std::uint32_t h = 0; h < kHosts; ++h) {
    threads.emplace_back([&, h] {
      Process& me = *hosts[h];
      const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(400);
      for (std::uint32_t i = h; std::chrono::steady_clock::now() < end; ++i) {
        const std::uint32_t e = i % extents;
        if (!me.extents.claim(e)) continue;
        CHECK_EQ(owners[e].fetch_add(1), 0);
        claimed.fetch_add(1);
        std::this_thread::yield();
        CHECK_EQ(owners[e].fetch_sub(1), 1);
        me.extents.release(e);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(claimed.load() > 10);
}

void free_room_flows_to_whoever_needs_it(const std::string& directory) {
  const auto pool = format(directory + "/pool", 2);
  Process a(pool, directory, 0);
  Process b(pool, directory, 1);
  a.hosts.refresh_active();
  std::vector<std::uint32_t> slots;
  for (std::uint32_t i = 0; i < pool->sb().extents; ++i)
    slots.push_back(a.put("a" + std::to_string(i), kExtent));
  Slot slot;
  CHECK(b.eviction.allocate(kExtent, slot) != Refusal::none);  // everything is the other host's
  for (const std::uint32_t s : slots) CHECK(a.evict(s));
  CHECK_EQ(a.slots.release_empty(), pool->sb().extents);
  CHECK(b.eviction.allocate(kExtent, slot) == Refusal::none);
  CHECK(b.slots.abandon(slot.number, slot.generation));
  a.check_clean();
  b.check_clean();
}

/// A host that was killed between its claim and its first cut is no damage in the eyes of the others.
void an_extent_that_is_not_cut_yet_is_no_damage(const std::string& directory) {
  const auto pool = format(directory + "/pool", 2);
  Process a(pool, directory, 0);
  Process b(pool, directory, 1);
  CHECK(a.extents.claim(3));
  b.check_clean();
  // Nor is one that died while it wrote how the extent is cut, which begins and ends with the first word.
  a.extents.cut(3, 4);
  Coherent::store(&pool->header(3)->slot_size, std::uint64_t{0});
  b.check_clean();
}

/// Two records say whose an extent is. With one of them damaged nobody else gets it.
void a_damaged_claim_gives_nobody_the_extent(const std::string& directory) {
  for (const int value : {0, 1, 2, 4, 255}) {
    const auto pool = format(directory + "/pool", 2);
    Process a(pool, directory, 0, 1, true, 60'000);
    Process b(pool, directory, 1, 1, true, 60'000);
    const std::uint32_t e = pool->extent_of(a.put("key"));
    Policy::store(pool->claims(0) + e, static_cast<std::uint8_t>(value));
    CHECK(!unclaimed(b, e));
    CHECK(!b.extents.claim(e));
    while (b.eviction.allocate(kExtent, *std::make_unique<Slot>()) == Refusal::none) continue;
    CHECK(!b.context.owns(pool->first_slot(e)));
    CHECK(a.lease("key"));
    // The owner puts it right, and goes on.
    a.upkeep.scrub(pool->slot_limit());
    CHECK(a.extents.claim_of(0, e) == Claim::owned);
    CHECK(a.counted(Count::repaired) >= 1);
    a.put("another");
    a.check_clean();
  }
}

void an_owner_that_has_lost_its_extent_lets_go(const std::string& directory) {
  const auto pool = format(directory + "/pool", 2);
  Process a(pool, directory, 0);
  const std::uint32_t e = pool->extent_of(a.put("key"));
  set(*pool, 0, e, Claim::none);
  set(*pool, 1, e, Claim::owned);
  a.upkeep.scrub(pool->slot_limit());
  CHECK(!a.context.owns(pool->first_slot(e)));
  CHECK(a.extents.claim_of(0, e) == Claim::none);
  CHECK(pool->extent_of(a.put("another")) != e);
}

void a_damaged_header_is_written_again(const std::string& directory) {
  const auto pool = format(directory + "/pool");
  Process a(pool, directory, 0);
  const std::uint32_t e = pool->extent_of(a.put("key"));
  pool->header(e)->slots ^= 1;
  a.upkeep.scrub(pool->slot_limit());
  a.check_clean();
  Process again(pool, directory, 0);
  CHECK(again.lease("key"));
}

/// A claim that a flipped bit made, beside the header of the host that has the extent.
/// Claims come and go under the slot lock: one on an extent that this host does not have is a flipped bit.
void a_claim_that_nobody_won_is_withdrawn(const std::string& directory) {
  const auto pool = format(directory + "/pool", 2);
  Process a(pool, directory, 0);
  Process b(pool, directory, 1);
  a.put("key");
  set(*pool, 0, 5, Claim::owned);
  set(*pool, 0, 6, static_cast<Claim>(9));
  CHECK(!unclaimed(b, 5));
  a.upkeep.scrub(pool->slot_limit());
  CHECK(unclaimed(b, 5) && unclaimed(b, 6));
  a.check_clean();
}

/// Of an extent that is claimed and not cut, its header says nothing, and certainly no garbage.
void the_header_of_an_extent_without_slots_is_void(const std::string& directory) {
  const auto pool = format(directory + "/pool", 2);
  Process b(pool, directory, 1);
  for (const bool again : {false, true}) {
    auto a = std::make_unique<Process>(pool, directory, 0);
    const std::uint32_t e = pool->extent_of(a->put("key"));
    pool->header(e)->slots ^= 1;
    a = std::make_unique<Process>(pool, directory, 0);
    if (again) {
      pool->header(e)->slot_size ^= 64;
      CHECK(b.walk.check().problems != 0);
      a->upkeep.scrub(pool->slot_limit());
    }
    CHECK_EQ(b.walk.check().problems, 0u);
  }
}

void a_claim_that_nobody_won_is_withdrawn_at_recovery(const std::string& directory) {
  const auto pool = format(directory + "/pool", 2);
  Process a(pool, directory, 0);
  const std::uint32_t e = pool->extent_of(a.put("key"));
  set(*pool, 1, e, Claim::owned);
  Process b(pool, directory, 1);
  CHECK(b.extents.claim_of(1, e) == Claim::none);
  CHECK(!b.context.owns(pool->first_slot(e)));
  CHECK(a.lease("key"));
  set(*pool, 1, e, Claim::owned);
  Process again(pool, directory, 0);  // both its records are whole
  CHECK(again.lease("key"));
}

void run(const std::string& directory) {
  a_damaged_claim_gives_nobody_the_extent(directory);
  an_owner_that_has_lost_its_extent_lets_go(directory);
  a_damaged_header_is_written_again(directory);
  a_claim_that_nobody_won_is_withdrawn_at_recovery(directory);
  a_claim_that_nobody_won_is_withdrawn(directory);
  the_header_of_an_extent_without_slots_is_void(directory);
  a_free_extent_is_claimed_once(directory);
  rivals(directory);
  a_higher_rival_that_withdraws_is_waited_for(directory);
  garbage_is_no_claim_to_take(directory);
  no_extent_has_two_owners(directory);
  free_room_flows_to_whoever_needs_it(directory);
  an_extent_that_is_not_cut_yet_is_no_damage(directory);
}

}  // namespace

int main() { return scratch::run(run); }
