#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "small_pool.hpp"

using namespace beluga;
using namespace small_pool;

namespace {

void a_leased_chunk_is_not_evicted(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const std::uint32_t slot = p.put("key");
  const auto lease = p.lease("key");
  CHECK(lease);
  CHECK(p.leases.valid(*lease));
  CHECK_EQ(lease->size, kChunk);
  CHECK_EQ(static_cast<int>(p.payload(*lease)[kChunk - 1]), 1);
  CHECK(!p.evict(slot));
  CHECK(p.state(slot) == SlotState::ready);
  p.leases.release(lease);
  CHECK(p.evict(slot));
  CHECK(!p.leases.valid(*lease));
  CHECK(!p.lease("key"));
}

void holders_of_one_chunk_are_counted(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const std::uint32_t slot = p.put("key");
  const auto one = p.lease("key");
  const auto two = p.lease("key");
  CHECK(one == two);
  CHECK_EQ(p.leases.count(), 1u);
  p.leases.release(one);
  CHECK(!p.evict(slot));
  CHECK(p.leases.valid(*two));
  p.leases.release(two);
  CHECK_EQ(p.leases.count(), 0u);
  CHECK(p.evict(slot));
}

/// Processes of one host share a stamp: it counts until the last of them lets go.
void processes_of_a_host_share_a_stamp(const std::string& directory) {
  const auto pool = format(directory + "/pool");
  Process one(pool, directory, 0, 1);
  Process two(pool, directory, 0, 2, false);
  const std::uint32_t slot = one.put("key");
  const auto first = one.lease("key");
  const auto second = two.lease("key");
  one.leases.release(first);
  CHECK(!one.evict(slot));
  CHECK(two.leases.valid(*second));
  const auto third = one.lease("key");
  two.leases.release(second);
  CHECK(!two.evict(slot));
  one.leases.release(third);
  CHECK_EQ(*one.context.control->lease_mask(slot), 0u);
  CHECK(two.evict(slot));
}

void hosts_have_stamps_of_their_own(const std::string& directory) {
  const auto pool = format(directory + "/pool", 2);
  Process owner(pool, directory, 0, 1, true, 60'000);
  Process reader(pool, directory, 1, 1, true, 60'000);
  owner.hosts.refresh_active();
  const std::uint32_t slot = owner.put("key");
  const auto lease = reader.lease("key");
  CHECK(!owner.evict(slot));
  reader.leases.release(lease);
  reader.beat();  // other hosts judge a stamp by the tick that its writer has published
  CHECK(owner.evict(slot));
}

void the_record_is_the_key(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  p.put("key");
  // Somebody else's record with the same fingerprint: a miss.
  const KeyBatch batch = key("key");
  std::vector<std::shared_ptr<Lease>> out;
  const std::string other = "yek";
  p.leases.acquire(
      batch.prints, [&](std::size_t) { return std::as_bytes(std::span(other)); }, false, out);
  CHECK(!out[0]);
  CHECK_EQ(p.leases.count(), 0u);
  CHECK(p.lease("key"));
}

void damaged_chunks_are_misses(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const std::uint32_t slot = p.put("key");
  p.pool->cold(slot)[0] ^= std::byte{1};
  CHECK(!p.lease("key"));
  CHECK(p.counted(Count::garbage) >= 1);
  CHECK_EQ(p.leases.count(), 0u);
  p.pool->cold(slot)[0] ^= std::byte{1};
  CHECK(p.lease("key"));
}

void renewal_goes_on_for_ever(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const_cast<AttachOptions&>(p.context.options).lease_ms = 300;
  const std::uint32_t slot = p.put("key");
  const auto lease = p.lease("key");
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(900);
  while (std::chrono::steady_clock::now() < end) {
    p.beat();
    p.leases.renew();
    CHECK(p.leases.valid(*lease));
    CHECK(!p.evict(slot));
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  p.leases.release(lease);
}

void a_lease_that_nobody_renews_lapses(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const_cast<AttachOptions&>(p.context.options).lease_ms = 100;
  const std::uint32_t slot = p.put("key");
  const auto lease = p.lease("key");
  std::this_thread::sleep_for(std::chrono::milliseconds(120));
  CHECK(!p.leases.valid(*lease));
  CHECK_EQ(p.counted(Count::lost_leases), 1u);
  CHECK(!p.leases.valid(*lease));
  CHECK_EQ(p.counted(Count::lost_leases), 1u);  // once
  CHECK(p.evict(slot));
  p.leases.release(lease);
}

/// Renewed too late: a new lease, and only if the chunk is still there.
void a_late_renewal_looks_again(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const_cast<AttachOptions&>(p.context.options).lease_ms = 100;
  p.put("stays");
  const std::uint32_t goes = p.put("goes");
  const auto kept = p.lease("stays");
  const auto lost = p.lease("goes");
  std::this_thread::sleep_for(std::chrono::milliseconds(120));
  CHECK(p.evict(goes));
  p.put("goes");  // the slot's next life
  p.leases.renew();
  CHECK(p.leases.valid(*kept));
  CHECK(!p.leases.valid(*lost));
}

/// A late heartbeat raises the lease epoch: nothing leased before counts, for good.
void an_epoch_voids_every_earlier_lease(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  p.put("key");
  const auto old = p.lease("key");
  ++p.context.header().lease_epoch;
  CHECK(!p.leases.valid(*old));
  p.leases.renew();
  CHECK(!p.leases.valid(*old));
  const auto fresh = p.lease("key");
  CHECK(fresh != old);
  CHECK(p.leases.valid(*fresh));
  p.leases.release(old);
  CHECK(p.leases.valid(*fresh));
}

void a_prefix_leases_nothing_behind_its_end(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  p.put("a");
  p.put("b");
  const std::uint32_t c = p.put("c");
  const std::uint32_t damaged = p.index.find_one(print("b")).slot;
  p.pool->cold(damaged)[0] ^= std::byte{1};  // found, and then not leasable
  const KeyBatch batch = keys({"a", "b", "c"});
  std::vector<std::shared_ptr<Lease>> out;
  p.leases.acquire(
      batch.prints, [&](std::size_t i) { return batch.record(i); }, true, out);
  CHECK(out[0]);
  CHECK(!out[1]);
  CHECK(!out[2]);
  CHECK_EQ(p.leases.count(), 1u);
  CHECK(p.evict(c));
}

/// Everything at once. A chunk's payload is its generation, all over: while a lease is valid it
/// never changes.
void leases_against_evictions(const std::string& directory) {
  const auto pool = format(directory + "/pool", 2);
  std::vector<std::unique_ptr<Process>> all;
  all.push_back(std::make_unique<Process>(pool, directory, 0, 1, true, 60'000));
  all.push_back(std::make_unique<Process>(pool, directory, 0, 2, false, 60'000));
  all.push_back(std::make_unique<Process>(pool, directory, 1, 1, true, 60'000));
  for (const auto& p : all) {
    p->hosts.refresh_active();
    const_cast<AttachOptions&>(p->context.options).lock_timeout_ms = 10'000;
  }
  constexpr int kKeys = 4;
  constexpr std::uint64_t kWords = 64;
  for (int k = 0; k < kKeys; ++k) all[0]->put("key " + std::to_string(k), kWords * 8, 0);

  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> leased{0};
  std::atomic<std::uint64_t> evicted{0};
  const auto words_of = [](const std::byte* at) {
    return reinterpret_cast<const std::uint64_t*>(at);
  };
  const auto reader = [&](Process& p, int seed) {
    for (int i = seed; !stop; ++i) {
      const auto lease = p.lease("key " + std::to_string(i % kKeys));
      if (!lease) continue;
      ++leased;
      const std::uint64_t* words = words_of(p.payload(*lease));
      const std::uint64_t first = __atomic_load_n(&words[0], __ATOMIC_RELAXED);
      for (int round = 0; round < 3; ++round) {
        for (std::uint64_t w = 0; w < kWords; ++w) {
          CHECK_EQ(__atomic_load_n(&words[w], __ATOMIC_RELAXED), first);
        }
        std::this_thread::yield();
      }
      CHECK(p.leases.valid(*lease));
      p.leases.release(lease);
      p.beat();
    }
  };
  const auto evictor = [&](Process& p, int seed) {
    std::uint64_t version = static_cast<std::uint64_t>(seed) << 32;
    for (int i = seed; !stop; ++i) {
      const std::string record = "key " + std::to_string(i % kKeys);
      const Found found = p.index.find_own(print(record));
      if (found && state_of(found.word) == SlotState::ready) {
        if (!p.eviction.evict(found.slot, found.word)) continue;
        ++evicted;
      }
      if (p.index.find_own(print(record))) continue;
      Slot slot;
      if (p.eviction.allocate(kWords * 8, slot) != Refusal::none) continue;
      ++version;
      auto* words = reinterpret_cast<std::uint64_t*>(slot.address);
      for (std::uint64_t w = 0; w < kWords; ++w)
        __atomic_store_n(&words[w], version, __ATOMIC_RELAXED);
      p.write_descriptor(slot, record, kWords * 8);
      if (!p.index.insert(print(record), slot.number)) {
        CHECK(p.slots.abandon(slot.number, slot.generation));
        continue;
      }
      publish_word<Policy>(Point::ready, pool->hot(slot.number),
                             make_word(slot.generation, 0, SlotState::ready));
    }
  };
  std::vector<std::thread> threads;
  threads.emplace_back([&] { reader(*all[0], 0); });
  threads.emplace_back([&] { reader(*all[1], 1); });
  threads.emplace_back([&] { reader(*all[2], 2); });
  threads.emplace_back([&] { evictor(*all[0], 1); });
  threads.emplace_back([&] { evictor(*all[1], 2); });
  std::this_thread::sleep_for(std::chrono::milliseconds(1000));
  stop = true;
  for (std::thread& thread : threads) thread.join();
  CHECK(leased > 0 && evicted > 0);
  for (const auto& p : all) {
    CHECK_EQ(p->leases.count(), 0u);
    CHECK_EQ(p->counted(Count::lost_leases), 0u);
  }
  CHECK_EQ(all[0]->walk.occupancy().leased, 0u);
  all[0]->check_clean();
}

void run(const std::string& directory) {
  a_leased_chunk_is_not_evicted(directory);
  holders_of_one_chunk_are_counted(directory);
  processes_of_a_host_share_a_stamp(directory);
  hosts_have_stamps_of_their_own(directory);
  the_record_is_the_key(directory);
  damaged_chunks_are_misses(directory);
  renewal_goes_on_for_ever(directory);
  a_lease_that_nobody_renews_lapses(directory);
  a_late_renewal_looks_again(directory);
  an_epoch_voids_every_earlier_lease(directory);
  a_prefix_leases_nothing_behind_its_end(directory);
  leases_against_evictions(directory);
}

}  // namespace

int main() { return scratch::run(run); }
