#include <chrono>
#include <stop_token>
#include <thread>
#include <vector>

#include "small_pool.hpp"

using namespace beluga;
using namespace small_pool;

namespace {

/// A pool whose host dies: `damage` is what it leaves, and the returned host has recovered.
template <typename Damage>
std::unique_ptr<Process> after(const std::string& directory, Damage damage,
                               std::uint32_t max_hosts = 1) {
  const auto pool = format(directory + "/pool", max_hosts);
  {
    Process before(pool, directory);
    damage(before);
  }
  auto recovered = std::make_unique<Process>(pool, directory);
  recovered->check_clean();
  CHECK_EQ(recovered->walk.occupancy().writing, 0u);
  CHECK_EQ(recovered->walk.occupancy().closing, 0u);
  CHECK_EQ(recovered->walk.occupancy().leased, 0u);
  return recovered;
}

void set_state(Process& p, std::uint32_t slot, SlotState state) {
  publish_word<Policy>(Point::ready, p.pool->hot(slot), make_word(generation_of(p.word(slot)), 1, state));
}

void chunks_survive(const std::string& directory) {
  const auto p = after(directory, [](Process& p) {
    for (int i = 0; i < 40; ++i) p.put("key " + std::to_string(i), kChunk, i);
  });
  for (int i = 0; i < 40; ++i) {
    const auto lease = p->lease("key " + std::to_string(i));
    CHECK(lease);
    for (std::uint64_t b = 0; b < kChunk; b += 100)
      CHECK_EQ(static_cast<int>(p->payload(*lease)[b]), i);
  }
  CHECK_EQ(p->walk.occupancy().chunks, 40u);
  CHECK_EQ(p->context.header().incarnation, 2u);
}

void half_written_slots_are_freed(const std::string& directory) {
  std::uint32_t plain = 0;
  std::uint32_t entered = 0;
  const auto p = after(directory, [&](Process& p) {
    p.put("key");
    Slot slot;
    CHECK(p.eviction.allocate(kChunk, slot) == Refusal::none);
    plain = slot.number;
    CHECK(p.eviction.allocate(kChunk, slot) == Refusal::none);
    entered = slot.number;
    p.write_descriptor(slot, "entered", kChunk);
    CHECK(p.index.insert(print("entered"), entered));
  });
  CHECK(p->state(plain) == SlotState::free);
  CHECK_EQ(generation_of(p->word(plain)), 1u);
  CHECK(p->state(entered) == SlotState::free);
  CHECK(!p->index.holds(print("entered"), entered));
  CHECK(p->found("key"));
}

void half_evicted_chunks_go(const std::string& directory) {
  std::uint32_t slot = 0;
  const auto p = after(directory, [&](Process& p) {
    slot = p.put("key");
    set_state(p, slot, SlotState::closing);
  });
  CHECK(p->state(slot) == SlotState::free);
  CHECK(!p->found("key"));
}

void a_half_evicted_chunk_that_another_host_leases_stays(const std::string& directory) {
  const auto pool = format(directory + "/pool", 2);
  Process reader(pool, directory, 1, 1, true, 60'000);
  std::uint32_t leased = 0;
  std::uint32_t removed = 0;
  std::shared_ptr<Lease> lease;
  {
    Process owner(pool, directory, 0, 1, true, 60'000);
    reader.hosts.refresh_active();
    leased = owner.put("leased");
    removed = owner.put("removed");
    lease = reader.lease("leased");
    CHECK(lease && reader.lease("removed"));
    set_state(owner, leased, SlotState::closing);
    set_state(owner, removed, SlotState::closing);
    CHECK(owner.index.remove(print("removed"), removed));  // nobody finds it any more
  }
  Process owner(pool, directory, 0, 1, true, 60'000);
  CHECK(owner.state(leased) == SlotState::ready);
  CHECK(owner.found("leased"));
  CHECK(reader.leases.valid(*lease));
  CHECK(!owner.evict(leased));
  CHECK(!owner.found("removed"));
  owner.check_clean();
}

void claims_that_were_not_won_are_withdrawn(const std::string& directory) {
  const auto p = after(directory, [&](Process& p) {
    p.put("key");
    p.extents.publish_claim(4, Claim::claiming);
    p.extents.publish_claim(5, Claim::settled);
    p.extents.publish_claim(6, Claim::owned);  // won, and not cut
    p.extents.publish_claim(3, static_cast<Claim>(200));
  });
  CHECK(p->extents.claim_of(0, 4) == Claim::none);
  CHECK(p->extents.claim_of(0, 5) == Claim::none);
  CHECK(p->extents.claim_of(0, 6) == Claim::owned);
  CHECK(p->extents.claim_of(0, 3) == Claim::none);
  CHECK(p->context.control->extent(6).owned);
  // Nothing is lost: all extents can be used.
  std::vector<Slot> slots;
  Slot slot;
  while (p->eviction.allocate(kExtent, slot) == Refusal::none) slots.push_back(slot);
  CHECK_EQ(slots.size(), p->pool->sb().extents);  // "key" was evicted for the last of them
}

/// A claim byte that was damaged: the extent's header knows whose it is.
void a_damaged_claim_is_restored(const std::string& directory) {
  for (const int value : {0, 1, 2, 4, 131, 255}) {
    const auto p = after(directory, [&](Process& p) {
      const std::uint32_t e = p.pool->extent_of(p.put("key"));
      Policy::store(p.pool->claims(0) + e, static_cast<std::uint8_t>(value));
    });
    CHECK(p->found("key"));
    CHECK(p->evict(p->index.find_one(print("key")).slot));
    CHECK_EQ(p->slots.release_empty(), 1u);
  }
}

void an_extent_that_another_host_got_is_not_taken_back(const std::string& directory) {
  const auto pool = format(directory + "/pool", 2);
  std::uint32_t e = 0;
  {
    Process p(pool, directory);
    e = pool->extent_of(p.put("key"));
    p.extents.void_header(e);
    p.extents.publish_claim(e, Claim::none);
  }
  Process other(pool, directory, 1);
  CHECK(other.extents.claim(e));
  Process p(pool, directory);
  CHECK(!p.context.control->extent(e).owned);
  CHECK(p.extents.claim_of(0, e) == Claim::none);
  other.extents.cut(e, 1);
  CHECK(!p.found("key"));
}

void lost_entries_come_back(const std::string& directory) {
  const auto p = after(directory, [&](Process& p) {
    const std::uint32_t slot = p.put("key");
    CHECK(p.index.remove(print("key"), slot));
    CHECK(!p.found("key"));
  });
  CHECK(p->found("key"));
  CHECK(p->lease("key"));
  CHECK(p->counted(Count::repaired) >= 1);
}

void entries_that_lead_nowhere_go(const std::string& directory) {
  const auto p = after(directory, [&](Process& p) {
    p.put("key");
    CHECK(p.index.insert(print("ghost"), 3));
    Lane* lane = p.pool->lane(9, 0);
    Policy::store(&lane->entries[2], std::uint64_t{0x1234'5678'0000'0001});
    Policy::store(&lane->entries[7], ~std::uint64_t{0});
  });
  CHECK(!p->index.holds(print("ghost"), 3));
  for (const std::uint64_t entry : p->pool->lane(9, 0)->entries) CHECK_EQ(entry, 0u);
  CHECK(p->found("key"));
}

void damaged_descriptors_are_freed_and_counted(const std::string& directory) {
  std::vector<std::uint32_t> slots;
  const auto p = after(directory, [&](Process& p) {
    for (int i = 0; i < 5; ++i) slots.push_back(p.put("key " + std::to_string(i)));
    p.pool->hot(slots[0])->size += 1;
    p.pool->hot(slots[1])->offset = ~std::uint64_t{0};
    p.pool->cold(slots[2])[1] ^= std::byte{1};
    Policy::store(&p.pool->hot(slots[3])->word, std::uint64_t{0x0000'0000'0007'0055});
  });
  for (int i = 0; i < 4; ++i)
    CHECK(p->state(slots[static_cast<std::size_t>(i)]) == SlotState::free);
  CHECK(p->found("key 4"));
  CHECK_EQ(p->walk.occupancy().chunks, 1u);
  CHECK(p->counted(Count::garbage) >= 3);
}

void an_extent_with_a_damaged_header_is_emptied(const std::string& directory) {
  const auto p = after(directory, [&](Process& p) {
    const std::uint32_t e = p.pool->extent_of(p.put("key"));
    p.pool->header(e)->slots ^= 1;
    p.put("large", kExtent);
  });
  CHECK(!p->found("key"));
  CHECK(p->lease("large"));
  for (int i = 0; i < 500; ++i) CHECK(p->put("new " + std::to_string(i)) != ~0u);
  p->check_clean();
}

void no_lease_outlives_its_processes_and_recency_does(const std::string& directory) {
  const auto pool = format(directory + "/pool");
  std::uint32_t leased = 0;
  std::uint32_t touched = 0;
  std::uint32_t tick = 0;
  {
    Process p(pool, directory);
    leased = p.put("leased");
    touched = p.put("touched");
    CHECK(p.lease("leased"));
    p.leases.touch(touched);
    tick = p.context.tick();
    p.beat();
  }
  Process p(pool, directory);
  CHECK(p.context.tick() >= tick);  // the clock goes on
  CHECK(p.context.tick() - tick < 60'000);
  CHECK(*pool->stamp(0, touched) != 0);
  CHECK(!leased_by_any(p.context, p.hosts, leased));
  CHECK(p.evict(leased));
}

void a_host_page_that_was_damaged_loses_nothing(const std::string& directory) {
  const auto p = after(directory, [&](Process& p) {
    p.put("key");
    HostIdentity& identity = p.pool->host(0)->identity;
    identity.state = 0;
    identity.incarnation = 0xffff'ffff;
    p.pool->host(0)->heartbeat.tick = 0;
  });
  CHECK(p->lease("key"));
  CHECK_EQ(p->pool->host(0)->identity.state, 1u);
}

/// As when a container comes back with a new /dev/shm: it waits for dead_after whether its host id is in use.
void a_restart_that_has_to_wait_costs_other_hosts_no_lease(const std::string& directory) {
  constexpr std::uint32_t kDeadAfterMs = 1500;
  const auto pool = format(directory + "/pool", 2);
  Process(pool, directory).put("key");
  Process reader(pool, directory, 1, 1, true, kDeadAfterMs);
  const std::shared_ptr<Lease> lease = reader.lease("key");
  CHECK(lease);
  std::jthread beats([&](std::stop_token stop) {
    while (!stop.stop_requested()) {
      reader.heartbeat.beat(0, 0);
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  });
  PoolProcess<Policy> again(pool, Process::control_block(directory + "/host0", *pool, true),
                            Process::options(0, kDeadAfterMs), 1);
  again.context.control->reset(*pool, 0);
  const std::uint64_t began = again.context.now_ms();
  again.start_host(false, 0);
  CHECK(again.context.now_ms() - began >= kDeadAfterMs);
  again.heartbeat.beat(0, 0);
  beats.request_stop();
  beats.join();
  reader.heartbeat.beat(0, 0);
  CHECK(reader.leases.valid(*lease));
}

void run(const std::string& directory) {
  chunks_survive(directory);
  half_written_slots_are_freed(directory);
  half_evicted_chunks_go(directory);
  a_half_evicted_chunk_that_another_host_leases_stays(directory);
  claims_that_were_not_won_are_withdrawn(directory);
  a_damaged_claim_is_restored(directory);
  an_extent_that_another_host_got_is_not_taken_back(directory);
  lost_entries_come_back(directory);
  entries_that_lead_nowhere_go(directory);
  damaged_descriptors_are_freed_and_counted(directory);
  an_extent_with_a_damaged_header_is_emptied(directory);
  no_lease_outlives_its_processes_and_recency_does(directory);
  a_host_page_that_was_damaged_loses_nothing(directory);
  a_restart_that_has_to_wait_costs_other_hosts_no_lease(directory);
}

}  // namespace

int main() { return scratch::run(run); }
