#include <atomic>
#include <chrono>
#include <set>
#include <thread>
#include <vector>

#include "small_pool.hpp"

using namespace beluga;
using namespace small_pool;

namespace {

void what_is_inserted_is_found(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  std::vector<std::uint32_t> slots;
  KeyBatch batch;
  for (int i = 0; i < 200; ++i) {
    const std::string record = "key " + std::to_string(i);
    slots.push_back(p.put(record, 1000));
    batch.add(std::as_bytes(std::span(record.data(), record.size())));
  }
  std::vector<Found> found(200);
  CHECK_EQ(p.index.find(batch.prints, found, true), 200u);
  for (std::size_t i = 0; i < 200; ++i) {
    CHECK(found[i]);
    CHECK_EQ(found[i].slot, slots[i]);
    CHECK_EQ(found[i].word, p.word(slots[i]));
    CHECK(p.index.holds(batch.prints[i], slots[i]));
  }
  CHECK(!p.found("absent"));
  CHECK(!p.index.holds(print("absent"), slots[0]));
}

/// Whatever the place of the miss in a block: what comes before it counts, nothing after it is
/// asked.
void a_prefix_ends_at_its_first_miss(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  for (const int miss : {0, 1, 31, 63, 64, 65, 127, 128, 199}) {
    KeyBatch batch;
    for (int i = 0; i < 200; ++i) {
      const std::string record = std::to_string(miss) + " key " + std::to_string(i);
      if (i != miss) p.put(record, 100);
      batch.add(std::as_bytes(std::span(record.data(), record.size())));
    }
    std::vector<Found> found(200);
    CHECK_EQ(p.index.find(batch.prints, found, true), static_cast<std::size_t>(miss));
    std::fill(found.begin(), found.end(), Found{});
    CHECK_EQ(p.index.find(batch.prints, found, false), 200u);
    for (int i = 0; i < 200; ++i)
      CHECK_EQ(static_cast<bool>(found[static_cast<std::size_t>(i)]), i != miss);
    for (const Fingerprint& f : batch.prints) {
      if (const Found one = p.index.find_one(f)) CHECK(p.evict(one.slot));
    }
  }
}

void only_chunks_are_found(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const std::uint32_t slot = p.put("key");
  const std::uint64_t generation = generation_of(p.word(slot));
  const auto in_state = [&](SlotState state) {
    publish_word<Policy>(Point::ready, p.pool->hot(slot), make_word(generation, 1, state));
    return p.found("key");
  };
  CHECK(in_state(SlotState::ready));
  CHECK(in_state(SlotState::closing));  // it may yet stay
  CHECK(!in_state(SlotState::writing));
  CHECK(!in_state(SlotState::free));
  Policy::store(&p.pool->hot(slot)->word, std::uint64_t{7});  // no state at all
  CHECK(!p.found("key"));
  CHECK(p.counted(Count::garbage) >= 1);
}

/// The tag is 32 bits: a lookup goes on scanning when the whole fingerprint differs.
void equal_tags_do_not_hide_each_other(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const std::uint32_t other = p.put("other");
  const Fingerprint f = print("key");
  // An entry for "key" that leads to another key's chunk comes first.
  CHECK(p.index.insert(f, other));
  CHECK(!p.found("key"));
  const std::uint32_t slot = p.put("key");
  CHECK_EQ(p.index.find_one(f).slot, slot);
  CHECK(p.index.remove(f, other));
  CHECK_EQ(p.index.find_one(f).slot, slot);
}

void garbage_entries_lead_nowhere(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const Fingerprint f = print("key");
  Lane* lane = p.index.own_lane(f);
  Policy::store(&lane->entries[0], make_entry(f.hi, p.pool->slot_limit()));
  Policy::store(&lane->entries[1], make_entry(f.hi, 0xffff'fffe));
  Policy::store(&lane->entries[2], (f.hi >> 32) << 32);  // a tag and no slot
  CHECK(!p.found("key"));
  CHECK(p.counted(Count::garbage) >= 2);
  CHECK_EQ(p.index.scrub_lane(p.pool->bucket_of(f.lo), false), 3u);
  for (const std::uint64_t entry : lane->entries) CHECK_EQ(entry, 0u);
  const std::uint32_t slot = p.put("key");
  CHECK_EQ(p.index.find_one(f).slot, slot);
  CHECK_EQ(p.index.scrub_lane(p.pool->bucket_of(f.lo), true), 0u);
}

void a_lane_holds_eight(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  std::vector<std::string> records;
  for (int i = 0; i < 9; ++i) records.push_back(record_in_bucket(*p.pool, 5, i));
  std::vector<std::uint32_t> slots;
  for (int i = 0; i < 8; ++i) slots.push_back(p.put(records[static_cast<std::size_t>(i)]));
  const Fingerprint ninth = print(records[8]);
  CHECK(!p.index.insert(ninth, 0));
  for (std::size_t i = 0; i < 8; ++i) CHECK_EQ(p.index.find_one(print(records[i])).slot, slots[i]);
  // Room is made by a full eviction, of a chunk that nobody leases.
  std::vector<std::shared_ptr<Lease>> leases;
  for (std::size_t i = 0; i < 8; ++i) {
    if (i != 3) leases.push_back(p.lease(records[i]));
  }
  CHECK(p.eviction.clear_lane(ninth));
  CHECK(p.state(slots[3]) == SlotState::free);
  CHECK(!p.found(records[3]));
  CHECK(p.index.insert(ninth, slots[3]));
  CHECK(p.index.remove(ninth, slots[3]));
  p.put(records[3]);
  leases.push_back(p.lease(records[3]));
  CHECK(!p.eviction.clear_lane(ninth));  // all leased
  for (const auto& lease : leases) CHECK(p.leases.valid(*lease));
  p.check_clean();
}

void hosts_have_lanes_of_their_own(const std::string& directory) {
  const auto pool = format(directory + "/pool", 3);
  Process a(pool, directory, 0);
  Process b(pool, directory, 2);
  a.hosts.refresh_active();
  const std::uint32_t at_a = a.put("a's");
  const std::uint32_t at_b = b.put("b's");
  CHECK_EQ(a.index.find_one(print("b's")).slot, at_b);
  CHECK_EQ(b.index.find_one(print("a's")).slot, at_a);
  CHECK(!b.index.find_own(print("a's")));
  CHECK(b.index.find_own(print("b's")));
  // Both store one key: each finds a copy, and each can remove its own alone.
  a.put("both");
  const std::uint32_t b_copy = b.put("both");
  CHECK(!a.index.remove(print("both"), b_copy));
  CHECK(a.evict(a.index.find_own(print("both")).slot));
  CHECK_EQ(a.index.find_one(print("both")).slot, b_copy);
  // A host that is not active is not asked.
  a.context.header().active_hosts = 1;
  CHECK(!a.found("both"));
}

/// A descriptor that never holds still costs a bounded number of looks, and then it is a miss.
void readers_never_wait(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const std::uint32_t slot = p.put("key");
  HotDescriptor* line = p.pool->hot(slot);
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (std::uint64_t g = 1; !stop; ++g)
      Policy::store(&line->word, make_word(g, 0, SlotState::ready));
  });
  std::uint64_t lookups = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(200);
  for (; std::chrono::steady_clock::now() < end; ++lookups) {
    const Found found = p.index.find_one(print("key"));
    if (found) CHECK(state_of(found.word) == SlotState::ready);
  }
  stop = true;
  writer.join();
  CHECK(lookups > 100);
}

/// Threads insert into and remove from one lane: each entry is there once, or not at all.
void writers_of_one_lane_do_not_disturb_each_other(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  std::vector<std::thread> threads;
  for (std::uint32_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      const Fingerprint f = print(record_in_bucket(*p.pool, 7, static_cast<int>(t)));
      for (int i = 0; i < 5000; ++i) {
        CHECK(p.index.insert(f, 2 * t));
        CHECK(p.index.insert(f, 2 * t + 1));
        CHECK(p.index.holds(f, 2 * t) && p.index.holds(f, 2 * t + 1));
        CHECK(p.index.remove(f, 2 * t));
        CHECK(!p.index.remove(f, 2 * t));
        CHECK(p.index.remove(f, 2 * t + 1));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const std::uint64_t entry : p.pool->lane(7, 0)->entries) CHECK_EQ(entry, 0u);
}

void run(const std::string& directory) {
  what_is_inserted_is_found(directory);
  a_prefix_ends_at_its_first_miss(directory);
  only_chunks_are_found(directory);
  equal_tags_do_not_hide_each_other(directory);
  garbage_entries_lead_nowhere(directory);
  a_lane_holds_eight(directory);
  hosts_have_lanes_of_their_own(directory);
  readers_never_wait(directory);
  writers_of_one_lane_do_not_disturb_each_other(directory);
}

}  // namespace

int main() { return scratch::run(run); }
