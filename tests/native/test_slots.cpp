#include <algorithm>
#include <atomic>
#include <csignal>
#include <set>
#include <thread>
#include <vector>

#include "small_pool.hpp"

using namespace beluga;
using namespace small_pool;

namespace {

std::vector<Slot> take_all(Process& p, std::uint64_t size) {
  std::vector<Slot> slots;
  Slot slot;
  while (p.eviction.allocate(size, slot) == Refusal::none) slots.push_back(slot);
  return slots;
}

void slots_do_not_overlap(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const std::vector<Slot> slots = take_all(p, kChunk);
  CHECK_EQ(slots.size(), p.pool->sb().extents * (kExtent / 4096));
  std::set<std::byte*> starts;
  for (const Slot& slot : slots) {
    CHECK(slot.capacity >= kChunk);
    CHECK(p.state(slot.number) == SlotState::writing);
    CHECK_EQ(process_of(p.word(slot.number)), 1u);
    starts.insert(slot.address);
  }
  CHECK_EQ(starts.size(), slots.size());
  std::byte* before = nullptr;
  for (std::byte* start : starts) {
    CHECK(before == nullptr || start >= before + kChunk);
    before = start;
  }
  Slot none;
  CHECK(p.eviction.allocate(kChunk, none) == Refusal::leased);  // WRITING slots are nobody else's
  for (const Slot& slot : slots) CHECK(p.slots.abandon(slot.number, slot.generation));
  CHECK_EQ(p.slots.release_empty(), p.pool->sb().extents);
  p.check_clean();
}

void generations_grow_with_each_life(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  Slot slot;
  CHECK(p.eviction.allocate(kExtent, slot) == Refusal::none);
  const std::uint64_t first = slot.generation;
  CHECK(p.slots.abandon(slot.number, slot.generation));
  CHECK(!p.slots.abandon(slot.number, slot.generation));  // its life is over
  CHECK_EQ(generation_of(p.word(slot.number)), first + 1);
  const std::uint32_t number = p.put("key", kExtent);
  CHECK_EQ(number, slot.number);
  CHECK(p.evict(number));
  CHECK(!p.evict(number));
  CHECK_EQ(generation_of(p.word(number)), first + 2);
  // Also across another cut, and another owner.
  p.slots.release_empty();
  CHECK(p.eviction.allocate(kChunk, slot) == Refusal::none);
  CHECK_EQ(slot.number, number);
  CHECK_EQ(slot.generation, first + 2);
}

/// A damaged entry may lead to a descriptor that an earlier cut left: nobody may get that slot.
void a_slot_outside_the_cut_is_never_free(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const std::uint32_t whole = p.put("whole", kExtent);
  const std::uint32_t stray = whole + 5;
  const std::uint64_t word = make_word(1, 0, SlotState::ready);
  publish_word<Policy>(Point::ready, p.pool->hot(stray), word);
  CHECK(p.evict(stray));
  CHECK(p.evict(whole));
  Slot first;
  CHECK(p.eviction.allocate(kExtent, first) == Refusal::none);
  for (Slot slot; p.eviction.allocate(kExtent, slot) == Refusal::none;) {
    CHECK(slot.number != stray);
    CHECK_EQ(slot.offset, 0u);
  }
}

/// Whatever a flipped bit makes of the descriptor of a slot that somebody is writing to: nobody else gets it, the
/// writer finds out, and then it comes back.
void a_slot_in_use_is_nobody_elses_whatever_its_descriptor_says(const std::string& directory) {
  const auto pool = format(directory + "/pool");
  Process p(pool, directory, 0, 1, true, 60'000);
  Process other(pool, directory, 0, 2, false, 60'000);
  for (int bit = 0; bit < 64; ++bit) {
    Slot slot;
    CHECK(p.eviction.allocate(kExtent, slot) == Refusal::none);
    const std::uint64_t word = p.word(slot.number) ^ std::uint64_t{1} << bit;
    publish_word<Policy>(Point::ready, pool->hot(slot.number), word);
    other.upkeep.scrub(pool->slot_limit());
    other.upkeep.sweep(3, 100);
    other.evict(slot.number);
    std::vector<Slot> others;
    for (Slot one; other.eviction.allocate(kExtent, one) == Refusal::none;) {
      CHECK(one.number != slot.number);
      others.push_back(one);
    }
    CHECK_EQ(others.size() + 1, pool->sb().extents);
    for (const Slot& one : others) CHECK(other.slots.abandon(one.number, one.generation));
    CHECK(!p.publication.reserved(slot));
    CHECK(!p.slots.abandon(slot.number, slot.generation));
    other.upkeep.scrub(pool->slot_limit());
    other.upkeep.scrub(pool->slot_limit());
    if (state_of(word) != SlotState::writing && state_of(word) != SlotState::closing) {
      CHECK(p.state(slot.number) == SlotState::free);
      p.check_clean();
    } else {
      // A process number or generation that means something: whoever has it may be alive.
      if (process_of(word) - 1 < kMaxProcesses) p.upkeep.sweep(process_of(word), 100);
      p.upkeep.sweep(1, 100);
      CHECK(p.state(slot.number) == SlotState::free);
    }
  }
}

void an_evicted_chunk_is_gone_and_its_slot_free(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const std::uint32_t slot = p.put("key");
  CHECK(p.evict(slot));
  CHECK(!p.found("key"));
  CHECK(p.state(slot) == SlotState::free);
  CHECK(
      p.slots.is_free(p.pool->extent_of(slot), slot - p.pool->first_slot(p.pool->extent_of(slot))));
  p.check_clean();
}

void what_a_dead_process_held_comes_back(const std::string& directory) {
  const auto pool = format(directory + "/pool");
  Process living(pool, directory, 0, 1);
  Process dead(pool, directory, 0, 2, false);
  const std::uint32_t chunk = living.put("key");
  const std::uint32_t removed = living.put("removed");
  Slot slot;
  for (int i = 0; i < 5; ++i) CHECK(dead.eviction.allocate(kChunk, slot) == Refusal::none);
  // One of them was all but published.
  dead.write_descriptor(slot, "half", kChunk);
  CHECK(dead.index.insert(print("half"), slot.number));
  CHECK(dead.lease("key"));
  CHECK(dead.lease("removed"));
  bool leased = false;
  CHECK(!dead.eviction.close(removed, dead.word(removed), true, leased));
  CHECK(leased);
  CHECK(dead.index.remove(print("removed"), removed));
  CHECK(!living.evict(chunk));

  CHECK(living.upkeep.sweep(2, 100));
  living.upkeep.retry_doomed();
  CHECK_EQ(living.walk.occupancy().writing, 0u);
  CHECK_EQ(living.walk.occupancy().leased, 0u);
  CHECK(!living.index.holds(print("half"), slot.number));
  CHECK(living.state(chunk) == SlotState::ready);
  CHECK(living.evict(chunk));
  CHECK(living.state(removed) == SlotState::free);
  living.check_clean();
}

void the_living_keep_what_they_hold(const std::string& directory) {
  const auto pool = format(directory + "/pool");
  Process living(pool, directory, 0, 1);
  Process other(pool, directory, 0, 2, false);
  const std::uint32_t chunk = living.put("key");
  const auto lease = living.lease("key");
  Slot slot;
  CHECK(living.eviction.allocate(kChunk, slot) == Refusal::none);
  CHECK(other.upkeep.sweep(3, 100));
  CHECK(living.state(slot.number) == SlotState::writing);
  CHECK(living.leases.valid(*lease));
  CHECK(!other.evict(chunk));
}

/// A process is killed while it holds the slot lock, at the worst places: the next taker puts it
/// right.
void a_dead_lock_holder_is_repaired(const std::string& directory) {
  const auto pool = format(directory + "/pool");
  Process p(pool, directory, 0, 1);
  p.put("key");
  const std::uint32_t e = pool->extent_of(p.put("other"));
  ExtentControl& control = p.context.control->extent(e);
  for (int where = 0; where < 3; ++where) {
    const std::uint32_t free_before = control.free;
    const int status = scratch::in_child([&] {
      // The control block's mutex does not care which object of which process takes it.
      CHECK(p.context.header().slots.lock(1000) == LockResult::acquired);
      std::uint32_t i = 0;
      while (!p.slots.is_free(e, i)) ++i;
      const std::uint32_t number = pool->first_slot(e) + i;
      Policy::store(&p.context.header().intent, number + 1);
      if (where >= 1) {
        const std::uint64_t word = p.word(number);
        publish_word<Policy>(Point::ready, pool->hot(number),
                               make_word(generation_of(word), 2, SlotState::writing));
      }
      if (where >= 2)
        p.context.control->free_map(e)[i / 64] ^= std::uint64_t{1} << i % 64;  // not counted yet
      ::kill(::getpid(), SIGKILL);
    });
    CHECK(WIFSIGNALED(status));
    {
      Slots<Policy>::Locked lock(p.slots);
      CHECK(lock);
    }
    CHECK_EQ(p.context.header().intent, 0u);
    CHECK_EQ(control.free, free_before - (where >= 1));
    p.check_clean();
    CHECK(p.upkeep.sweep(2, 100));
    CHECK_EQ(control.free, free_before);
    p.check_clean();
  }
}

/// Claimed, and killed before it was cut; or in the middle of an election.
void unfinished_claims_of_the_dead_are_repaired(const std::string& directory) {
  const auto pool = format(directory + "/pool");
  Process p(pool, directory, 0, 1);
  p.put("key");
  const int status = scratch::in_child([&] {
    CHECK(p.context.header().slots.lock(1000) == LockResult::acquired);
    p.extents.publish_claim(4, Claim::claiming);
    p.extents.publish_claim(5, Claim::settled);
    p.extents.publish_claim(6, Claim::owned);
    ::kill(::getpid(), SIGKILL);
  });
  CHECK(WIFSIGNALED(status));
  {
    Slots<Policy>::Locked lock(p.slots);
    CHECK(lock);
  }
  CHECK(p.extents.claim_of(0, 4) == Claim::none);
  CHECK(p.extents.claim_of(0, 5) == Claim::none);
  CHECK(p.context.control->extent(6).owned);
  p.check_clean();
  const std::vector<Slot> slots = take_all(p, kExtent);
  CHECK_EQ(slots.size(), pool->sb().extents);  // nothing is lost
}

void a_stopped_lock_holder_is_not_waited_for_long(const std::string& directory) {
  const auto pool = format(directory + "/pool");
  Process p(pool, directory, 0, 1, true, 60'000);  // beats once: the waits below may not make it late
  const std::uint32_t chunk = p.put("key");
  int pipe_fds[2];
  CHECK(::pipe(pipe_fds) == 0);
  const pid_t holder = ::fork();
  if (holder == 0) {
    const bool held = p.context.header().slots.lock(1000) == LockResult::acquired;
    CHECK(::write(pipe_fds[1], &held, 1) == 1);
    for (;;) ::pause();
  }
  bool held = false;
  CHECK(::read(pipe_fds[0], &held, 1) == 1 && held);
  Slot slot;
  CHECK(p.eviction.allocate(kChunk, slot) == Refusal::busy);
  CHECK(!p.evict(chunk));
  CHECK(p.state(chunk) == SlotState::ready);  // not left half-evicted
  CHECK(p.found("key"));
  CHECK(p.lease("key"));
  ::kill(holder, SIGKILL);
  int status = 0;
  CHECK(::waitpid(holder, &status, 0) == holder);
  CHECK(p.eviction.allocate(kChunk, slot) == Refusal::none);
  ::close(pipe_fds[0]);
  ::close(pipe_fds[1]);
}

void threads_share_the_slots(const std::string& directory) {
  const auto pool = format(directory + "/pool");
  Process one(pool, directory, 0, 1);
  Process two(pool, directory, 0, 2, false);
  for (Process* p : {&one, &two})
    const_cast<AttachOptions&>(p->context.options).lock_timeout_ms = 10'000;
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Process& p = t % 2 ? one : two;
      for (int i = 0; i < 300; ++i) {
        Slot slots[4];
        int taken = 0;
        while (taken < 4 &&
               p.eviction.allocate(t < 2 ? 3000 : 9000, slots[taken]) == Refusal::none) {
          std::memset(slots[taken].address, t * 4 + taken + 1, 3000);
          ++taken;
        }
        for (int k = 0; k < taken; ++k) {
          for (int b = 0; b < 3000; b += 500)
            CHECK_EQ(static_cast<int>(slots[k].address[b]), t * 4 + k + 1);
          CHECK(p.slots.abandon(slots[k].number, slots[k].generation));
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  one.check_clean();
  CHECK_EQ(one.walk.occupancy().writing, 0u);
}

/// An extent that is being emptied or given up is nobody else's, not even another thread's of the same process: its
/// storage goes while the slot lock is free.
void an_extent_is_given_up_by_one(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  CHECK(p.evict(p.put("key")));
  const std::uint32_t e = p.slots.all_owned().at(0);
  {
    const Slots<Policy>::Draining mine(p.slots, e);
    CHECK(static_cast<bool>(mine));
    CHECK(!Slots<Policy>::Draining(p.slots, e));
    CHECK(!p.slots.release(e));
    CHECK(p.pool->extent_of(p.put("elsewhere")) != e);
    CHECK(static_cast<bool>(mine));
  }
  CHECK(p.slots.release(e));
  CHECK(!p.slots.release(e));
  CHECK(!Slots<Policy>::Draining(p.slots, e));  // nobody's
  p.check_clean();
}

/// A heartbeat gives up one extent, and as many more as there is time for.
void to_give_up_takes_no_longer_than_allowed(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  for (std::uint32_t i = 0; i < 3; ++i) p.put("key" + std::to_string(i), kExtent);
  CHECK_EQ(p.removal.remove_all_own(), 3u);
  CHECK_EQ(p.eviction.give_up(3, 0, 0), 1u);
  CHECK_EQ(p.eviction.give_up(3, 0, ~std::uint64_t{0}), 2u);
  // The same for what has to be emptied first.
  for (std::uint32_t i = 0; i < 3; ++i) p.put("more" + std::to_string(i), kExtent);
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // colder than whoever wants them
  CHECK_EQ(p.eviction.give_up(3, 0, 0), 1u);
  p.check_clean();
}

void run(const std::string& directory) {
  slots_do_not_overlap(directory);
  generations_grow_with_each_life(directory);
  a_slot_outside_the_cut_is_never_free(directory);
  a_slot_in_use_is_nobody_elses_whatever_its_descriptor_says(directory);
  an_evicted_chunk_is_gone_and_its_slot_free(directory);
  what_a_dead_process_held_comes_back(directory);
  the_living_keep_what_they_hold(directory);
  a_dead_lock_holder_is_repaired(directory);
  unfinished_claims_of_the_dead_are_repaired(directory);
  a_stopped_lock_holder_is_not_waited_for_long(directory);
  threads_share_the_slots(directory);
  an_extent_is_given_up_by_one(directory);
  to_give_up_takes_no_longer_than_allowed(directory);
}

}  // namespace

int main() { return scratch::run(run); }
