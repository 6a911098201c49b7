#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

#include "slots.hpp"
#include "stamps.hpp"

namespace beluga {

/// Getting a slot when none is free: the coldest chunk goes, by the newest use on any host, and of one prefix the
/// end before the beginning. A leased chunk never goes.
template <class V>
class Eviction {
 public:
  Eviction(HostContext& context, Index<V>& index, Hosts<V>& hosts, Slots<V>& slots)
      : context_(context),
        pool_(*context.pool),
        control_(*context.control),
        index_(index),
        hosts_(hosts),
        slots_(slots) {}

  /// Takes a slot for `size` bytes: a free one, one of a newly claimed extent, or that of the coldest chunk.
  /// Throws chunk_too_large.
  Refusal allocate(std::uint64_t size, Slot& slot) {
    const std::uint32_t cut = slots_.cut_for(size);
    Refusal refusal = Refusal::leased;
    int fresh_look = 0;
    for (int attempt = 0; attempt < kAllocateAttempts; ++attempt) {
      {
        typename Slots<V>::Locked lock(slots_);
        if (!lock) return Refusal::busy;
        refusal = Refusal::leased;
        if (slots_.take(cut, slot, refusal)) return Refusal::none;
      }
      if (attempt == 0) note_shortage(size);
      if (make_room(cut)) continue;
      if (fresh_look++) return refusal;
      slots_.forget_unclaimed();  // another host may have given an extent up since the last look
    }
    return refusal;
  }

  /// Begins to evict a chunk: CLOSING, then a fresh look at every lease. True: closed, and no lease is live.
  /// With `doom` the chunk stays CLOSING even if leased, to be freed when its leases have ended.
  bool close(std::uint32_t slot, std::uint64_t ready_word, bool doom, bool& leased) {
    HotDescriptor* line = pool_.hot(slot);
    leased = false;
    if (!V::exchange_if(&line->word, ready_word, closing_word(ready_word))) return false;
    // SYNC POINT: closing (with Leases::observe, after its stamp was confirmed)
    V::confirm(Point::closing, line, kLine);
    leased = leased_by_any(context_, hosts_, slot) && V::on(Point::closing, Step::check);
    if (!leased) return true;
    if (!doom) reopen(slot, ready_word);
    return false;
  }

  /// The word of a chunk that this process is closing.
  std::uint64_t closing_word(std::uint64_t word) const {
    return make_word(generation_of(word), context_.process, SlotState::closing);
  }

  /// Gives an eviction up. The chunk is CLOSING by this process.
  void reopen(std::uint32_t slot, std::uint64_t word) const {
    HotDescriptor* line = pool_.hot(slot);
    const std::uint64_t ready = make_word(generation_of(word), 0, SlotState::ready);
    if (!V::exchange_if(&line->word, closing_word(word), ready)) return;
    V::confirm(Point::reopen, line, kLine);  // SYNC POINT: reopen (with read_hot)
  }

  /// Evicts one chunk if nobody leases it. False: leased, or it changed meanwhile.
  bool evict(std::uint32_t slot, std::uint64_t ready_word) {
    const std::uint64_t size = V::load(&pool_.hot(slot)->size);
    bool leased = false;
    if (!close(slot, ready_word, false, leased)) return false;
    if (!slots_.finish(slot, closing_word(ready_word))) {
      reopen(slot, ready_word);
      return false;
    }
    context_.count(Count::evictions);
    context_.count(Count::evicted_bytes, size <= pool_.sb().extent_size ? size : 0);
    return true;
  }

  /// Makes room in a full lane: drops what nobody confirms, else evicts its coldest chunk that is not leased.
  bool clear_lane(const Fingerprint& print) {
    const std::uint64_t bucket = pool_.bucket_of(print.lo);
    {
      typename Slots<V>::Locked lock(slots_);  // see Upkeep::scrub_lanes
      if (!lock) return false;
      const std::uint32_t dropped = index_.scrub_lane(bucket, false);
      context_.count(Count::repaired, dropped);
      if (dropped) return true;
    }
    Candidate coldest;
    for (const std::uint64_t& place : index_.own_lane(print)->entries) {
      const std::uint64_t entry = V::load(&place);
      if (entry == 0) return true;
      consider(static_cast<std::uint32_t>(entry) - 1, coldest);
    }
    if (!coldest.found || !evict(coldest.slot, coldest.word)) return false;
    context_.count(Count::lane_evictions);
    return true;
  }

  /// Evicts the coldest chunks until about `bytes` are free. Returns the bytes freed.
  std::uint64_t evict_bytes(std::uint64_t bytes) {
    std::uint64_t freed = 0;
    for (int misses = 0; freed < bytes && misses < kEvictMisses;) {
      slots_.refresh_owned();
      const std::vector<std::uint32_t> owned = slots_.all_owned();
      Candidate coldest = sample(owned);
      if (!coldest.found) coldest = scan(owned);
      if (!coldest.found) break;
      const std::uint64_t size = V::load(&pool_.hot(coldest.slot)->size);
      if (evict(coldest.slot, coldest.word)) {
        freed += size;
        misses = 0;
      } else {
        ++misses;
      }
    }
    return freed;
  }

  /// Gives up to `most` extents to whoever needs them: empty ones, or ones whose chunks are `age_ms` old or older on
  /// average. None but the first is begun after `until_ms`. Returns how many.
  std::uint32_t give_up(std::uint32_t most, std::uint64_t age_ms, std::uint64_t until_ms) {
    std::uint32_t given = slots_.release_empty(most, until_ms);
    while (given < most && (given == 0 || context_.now_ms() < until_ms)) {
      slots_.refresh_owned();
      const std::uint32_t e = coldest_extent(slots_.all_owned(), age_ms);
      if (e == kNoExtent || !drain(e) || !slots_.release(e)) break;
      ++given;
    }
    return given;
  }

  /// From which age on chunks are clearly older than one of `age_ms`: much older, so that to empty a whole extent of
  /// them is worth it, and by so much that two who compare do not hand an extent back and forth.
  static constexpr std::uint64_t clearly_older(std::uint64_t age_ms) { return 2 * age_ms + 1000; }

  /// How long ago the chunk was used that would be evicted next, at least 1; 0: there is none that may go.
  std::uint32_t coldest_age_ms() {
    slots_.refresh_owned();
    const Candidate coldest = sample(slots_.all_owned());
    if (!coldest.found) return 0;
    return static_cast<std::uint32_t>(std::clamp<std::uint64_t>(coldest.age, 1, ~0u));
  }

 private:
  static constexpr std::uint32_t kNoExtent = ~0u;
  static constexpr int kAllocateAttempts = 64;
  static constexpr int kEvictMisses = 64;
  static constexpr int kSamples = 16;
  static constexpr int kSampleRounds = 4;
  /// A chunk counts as this much older per position in its prefix, so that suffixes go before prefixes.
  static constexpr std::uint64_t kDepthAgeMs = 16;
  static constexpr std::uint32_t kDepthLimit = 4096;

  struct Candidate {
    bool found = false;
    std::uint32_t slot = 0;
    std::uint64_t word = 0;
    std::uint64_t age = 0;
  };

  /// Evicts one chunk, or empties an extent of another cut that is used much less. False: nothing may go.
  bool make_room(std::uint32_t cut) {
    slots_.refresh_owned();
    const std::vector<std::uint32_t> same = slots_.owned_with(cut, true);
    const std::vector<std::uint32_t> other = slots_.owned_with(cut, false);
    const Candidate mine = sample(same);
    // Emptying a whole extent costs many chunks: only for one that is clearly colder, or if there is no other way.
    const std::uint32_t victim = coldest_extent(other, mine.found ? clearly_older(mine.age) : 0);
    if (victim != kNoExtent && drain(victim)) return true;
    for (int i = 0; i < kEvictMisses; ++i) {
      const Candidate coldest = i == 0 ? mine : i < kSampleRounds ? sample(same) : scan(same);
      if (coldest.found && evict(coldest.slot, coldest.word)) return true;
      if (!coldest.found && i >= kSampleRounds) break;
    }
    for (const std::uint32_t e : other) {
      if (drain(e)) return true;
    }
    return false;
  }

  /// Of some of these extents the one whose chunks are the coldest on average, if that is more than `age_ms`.
  std::uint32_t coldest_extent(const std::vector<std::uint32_t>& extents, std::uint64_t age_ms) {
    std::uint32_t coldest = kNoExtent;
    for (int i = 0; i < kSamples / 2 && !extents.empty(); ++i) {
      const std::uint32_t e = extents[random(static_cast<std::uint32_t>(extents.size()))];
      std::uint64_t total = 0;
      std::uint32_t n = 0;
      for (int k = 0; k < 4; ++k) {
        const Candidate one = sample({e}, 1);
        if (!one.found) continue;
        total += one.age;
        ++n;
      }
      if (n == 0 || total / n < age_ms) continue;
      age_ms = total / n;
      coldest = e;
    }
    return coldest;
  }

  void note_shortage(std::uint64_t size) const {
    if (context_.sb().max_hosts == 1) return;
    __atomic_fetch_add(&context_.header().shortage_bytes, size, __ATOMIC_RELAXED);
  }

  /// Could everything in an own extent be evicted now?
  bool drainable(std::uint32_t e) {
    const std::uint32_t first = pool_.first_slot(e);
    for (std::uint32_t i = 0; i < control_.extent(e).slots; ++i) {
      if (slots_.is_free(e, i)) continue;
      Candidate chunk;
      consider(first + i, chunk);
      if (!chunk.found) return false;
    }
    return true;
  }

  /// Evicts everything in an own extent. True when it is empty then.
  bool drain(std::uint32_t e) {
    const ExtentControl& control = control_.extent(e);
    if (!drainable(e)) return false;  // do not evict the rest for nothing
    const typename Slots<V>::Draining mine(slots_, e);
    if (!mine) return false;
    const std::uint32_t first = pool_.first_slot(e);
    bool empty = true;
    for (std::uint32_t i = 0; i < control.slots && empty; ++i) {
      if (slots_.is_free(e, i)) continue;
      const std::uint64_t word = V::load(&pool_.hot(first + i)->word);
      empty = is_state(word) && state_of(word) == SlotState::ready && evict(first + i, word);
    }
    return empty && control.free == control.slots;
  }

  /// The coldest of some random chunks of these extents that nobody leases.
  Candidate sample(const std::vector<std::uint32_t>& extents, int wanted = kSamples) {
    Candidate coldest;
    if (extents.empty()) return coldest;
    int seen = 0;
    for (int i = 0; i < wanted * 4 && seen < wanted; ++i) {
      const std::uint32_t e = extents[random(static_cast<std::uint32_t>(extents.size()))];
      const std::uint32_t slots = control_.extent(e).slots;
      if (slots == 0) continue;
      const std::uint32_t k = random(slots);
      if (slots_.is_free(e, k)) continue;
      ++seen;
      consider(pool_.first_slot(e) + k, coldest);
    }
    return coldest;
  }

  /// The same, but finds a chunk wherever it is: where few slots hold one that may go, chance misses it.
  Candidate scan(const std::vector<std::uint32_t>& extents, int wanted = kSamples) {
    Candidate coldest;
    if (extents.empty()) return coldest;
    const std::uint32_t start = random(static_cast<std::uint32_t>(extents.size()));
    for (std::size_t k = 0; k < extents.size() && wanted > 0; ++k) {
      const std::uint32_t e = extents[(start + k) % extents.size()];
      const std::uint32_t slots = control_.extent(e).slots;
      for (std::uint32_t i = 0; i < slots && wanted > 0; ++i) {
        if (!slots_.is_free(e, i)) wanted -= consider(pool_.first_slot(e) + i, coldest);
      }
    }
    return coldest;
  }

  /// Keeps the colder of `coldest` and the chunk in `slot`; false if there is none or it is leased.
  bool consider(std::uint32_t slot, Candidate& coldest) {
    if (!context_.slot_in_range(slot)) return false;
    const HotDescriptor* line = pool_.hot(slot);
    const std::uint64_t word = V::load(&line->word);
    if (!is_state(word) || state_of(word) != SlotState::ready) return false;
    const SlotUse use = slot_use(context_, hosts_, slot, V::load(&line->born));
    if (use.leased) return false;
    const std::uint64_t age =
        use.idle_ms + std::uint64_t{std::min(V::load(&line->depth), kDepthLimit)} * kDepthAgeMs;
    if (!coldest.found || age > coldest.age) coldest = {true, slot, word, age};
    return true;
  }

  std::uint32_t random(std::uint32_t below) {
    std::uint64_t x = random_.load(std::memory_order_relaxed);
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    random_.store(x, std::memory_order_relaxed);
    return static_cast<std::uint32_t>((x >> 32) * below >> 32);
  }

  HostContext& context_;
  const PoolMemory& pool_;
  const ControlBlock& control_;
  Index<V>& index_;
  Hosts<V>& hosts_;
  Slots<V>& slots_;
  std::atomic<std::uint64_t> random_{0x9e3779b97f4a7c15 ^ context_.now_ms()};
};

}  // namespace beluga
