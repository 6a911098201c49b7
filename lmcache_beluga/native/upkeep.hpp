#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "eviction.hpp"
#include "leases.hpp"

namespace beluga {

/// Puts right what others left undone: dead processes of this host, chunks removed while leased, flipped bits.
template <class V>
class Upkeep {
 public:
  Upkeep(HostContext& context, Index<V>& index, Hosts<V>& hosts, Leases<V>& leases, Extents<V>& extents,
         Slots<V>& slots, Eviction<V>& eviction)
      : context_(context),
        pool_(*context.pool),
        control_(*context.control),
        index_(index),
        hosts_(hosts),
        leases_(leases),
        extents_(extents),
        slots_(slots),
        eviction_(eviction) {}

  /// Takes over what a dead process of this host left: its half-written and half-evicted slots, its leases.
  /// False when something is left because the slot lock could not be had.
  bool sweep(std::uint32_t process, std::uint32_t timeout_ms) {
    // If it died under the slot lock, the free map must be put right before it is asked for slots that are taken.
    bool clean = static_cast<bool>(typename Slots<V>::Locked(slots_, timeout_ms));
    for (std::uint32_t e = 0; e < pool_.sb().extents; ++e) {
      ExtentControl& control = control_.extent(e);
      ExtentHeader header;
      const bool own = control.owned;
      V::exchange_if(&control.draining.value, static_cast<std::uint8_t>(process), std::uint8_t{0});
      std::uint32_t slots = own ? control.slots : 0;
      if (!own) {
        if (pool_.sb().max_hosts == 1 || !extents_.read_header(e, header)) continue;
        slots = header.slots;
      }
      const std::uint32_t first = pool_.first_slot(e);
      for (std::uint32_t i = 0; i < slots; ++i) {
        if (own && !slots_.is_free(e, i)) clean &= sweep_own(first + i, process, timeout_ms);
        leases_.forget_process(first + i, process);
      }
    }
    return clean;
  }

  /// Frees closed chunks whose leases have ended by now, and abandoned slots.
  void retry_doomed() {
    slots_.doomed().retry([&](const DoomedSlot& entry) {
      if (V::load(&pool_.hot(entry.slot)->word) != entry.word) {
        if (state_of(entry.word) == SlotState::writing) slots_.written(entry.slot);
        return true;
      }
      if (state_of(entry.word) == SlotState::closing && leased_by_any(context_, hosts_, entry.slot)) return false;
      return slots_.finish(entry.slot, entry.word, Slots<V>::kBriefMs);
    });
  }

  /// Looks at some own slots and lanes for what flipped bits or lost processes left, and repairs it.
  void scrub(std::uint32_t budget) {
    std::vector<std::uint32_t> orphans;
    scrub_some(budget, orphans);
    for (const std::uint32_t slot : orphans) {
      const std::uint64_t word = V::load(&pool_.hot(slot)->word);
      if (is_state(word) && state_of(word) == SlotState::closing && !owner_plausible(word)) adopt_closing(slot, word);
    }
    scrub_stamps(stamp_cursor_++ % pool_.sb().extents);
  }

 private:
  bool sweep_own(std::uint32_t slot, std::uint32_t process, std::uint32_t timeout_ms) {
    if (!sweep_slot(slot, process, timeout_ms)) return false;
    V::exchange_if(control_.writer(slot), static_cast<std::uint8_t>(process), std::uint8_t{0});
    return true;
  }

  /// False when the slot is left as it was because the lock could not be had.
  bool sweep_slot(std::uint32_t slot, std::uint32_t process, std::uint32_t timeout_ms) {
    HotDescriptor* line = pool_.hot(slot);
    const std::uint64_t word = V::load(&line->word);
    if (!is_state(word) || process_of(word) != process) return true;
    if (state_of(word) == SlotState::writing) {
      typename Slots<V>::Locked lock(slots_, timeout_ms);
      if (lock && V::load(&line->word) == word && !slots_.in_other_hands(slot, word)) {
        slots_.finish_locked(slot, generation_of(word));
      }
      // The number of the dead is this process's own now: it is for nobody else to sweep.
      if (!lock && process == context_.process) slots_.doomed().add(slot, word);
      return static_cast<bool>(lock);
    }
    if (state_of(word) == SlotState::closing) adopt_closing(slot, word);
    return true;
  }

  /// A chunk whose evictor died: still leased, and its entry is there: it stays. Otherwise it goes.
  void adopt_closing(std::uint32_t slot, std::uint64_t word) {
    HotDescriptor* line = pool_.hot(slot);
    const Fingerprint print{V::load(&line->print_lo), V::load(&line->print_hi)};
    const std::uint64_t mine = eviction_.closing_word(word);
    if (!V::exchange_if(&line->word, word, mine)) return;
    V::confirm(Point::closing, line, kLine);
    if (!leased_by_any(context_, hosts_, slot)) {
      if (!slots_.finish(slot, mine, Slots<V>::kBriefMs)) slots_.doomed().add(slot, mine);
    } else if (index_.holds(print, slot)) {
      eviction_.reopen(slot, word);
    } else {
      slots_.doomed().add(slot, mine);
    }
  }

  void scrub_some(std::uint32_t budget, std::vector<std::uint32_t>& orphans) {
    typename Slots<V>::Locked lock(slots_, 0);
    if (!lock) return;
    const std::uint32_t lanes = budget;
    const std::uint64_t limit = pool_.slot_limit();
    std::uint64_t at = context_.header().scrub_cursor % limit;
    for (std::uint32_t steps = 0; budget && steps < pool_.sb().extents + budget; ++steps) {
      const std::uint32_t e = pool_.extent_of(static_cast<std::uint32_t>(at));
      const ExtentControl& control = control_.extent(e);
      const auto i = static_cast<std::uint32_t>(at - pool_.first_slot(e));
      if (i == 0) extents_.scrub(e);
      if (!control.owned || i >= control.slots) {
        at = (std::uint64_t{pool_.first_slot(e)} + pool_.sb().slots_per_extent) % limit;
        continue;
      }
      scrub_slot(static_cast<std::uint32_t>(at), orphans);
      --budget;
      at = (at + 1) % limit;
    }
    context_.header().scrub_cursor = at;
    scrub_lanes(lanes);
  }

  void scrub_slot(std::uint32_t slot, std::vector<std::uint32_t>& orphans) {
    HotDescriptor* line = pool_.hot(slot);
    const std::uint32_t e = pool_.extent_of(slot);
    const std::uint32_t i = slot - pool_.first_slot(e);
    HotDescriptor hot;
    if (!read_hot<V>(line, hot)) return;
    if (slots_.in_other_hands(slot, hot.word)) return;  // its writer finds out
    const bool free = is_state(hot.word) && state_of(hot.word) == SlotState::free;
    if (free && !slots_.is_free(e, i)) {
      // Its last life did not end in order: whoever believes to be in it must not mistake the next one for it.
      slots_.finish_locked(slot, generation_of(hot.word));
      context_.count(Count::repaired);
    } else if (free != slots_.is_free(e, i)) {
      slots_.set_free(e, i, free);
      context_.count(Count::repaired);
    } else if (is_state(hot.word) && state_of(hot.word) == SlotState::closing && !owner_plausible(hot.word)) {
      orphans.push_back(slot);  // may be leased: looked at without the lock
    } else if (!is_state(hot.word) || !owner_plausible(hot.word)) {
      slots_.finish_locked(slot, generation_of(hot.word));
      context_.count(Count::repaired);
    } else if (state_of(hot.word) == SlotState::ready) {
      scrub_chunk(slot, hot);
    }
  }

  /// This host's stamps of an extent's slots, whoever owns it: older than half the clock's range, a stamp would soon look
  /// like one from the future.
  void scrub_stamps(std::uint32_t e) {
    ExtentHeader header;
    if (!extents_.read_header(e, header)) return;
    try {
      pool_.reserve_stamps(context_.host, e, header.slots);
    } catch (const Error&) {
      return;  // a full file system: what is not there is not old
    }
    for (std::uint32_t i = 0; i < header.slots; ++i) {
      std::uint32_t* stamp = pool_.stamp(context_.host, pool_.first_slot(e) + i);
      const std::uint32_t seen = V::load(stamp);
      if (seen == 0 || static_cast<std::int32_t>(context_.tick() - seen) <= 1 << 30) continue;
      if (V::exchange_if(stamp, seen, std::uint32_t{0})) V::write_back_soon(Point::stamp_lowered, stamp);
    }
  }

  /// A chunk that cannot be read goes, one that the index has lost comes back.
  void scrub_chunk(std::uint32_t slot, HotDescriptor& hot) {
    HotDescriptor* line = pool_.hot(slot);
    const std::uint64_t ready = make_word(generation_of(hot.word), 0, SlotState::ready);
    if (hot.word != ready && V::exchange_if(&line->word, hot.word, ready)) {
      hot.word = ready;
      context_.count(Count::repaired);
    }
    const ReadResult result = read_cold<V>(pool_, slot, hot, scrub_cold_);
    if (V::load(&line->word) != hot.word) return;  // being evicted
    if (result == ReadResult::garbage) {
      bool leased = false;
      if (!eviction_.close(slot, hot.word, false, leased)) return;  // leased, or somebody else is evicting it
      context_.count(Count::garbage);
      context_.count(Count::repaired);
      slots_.finish_locked(slot, generation_of(hot.word));
    } else if (result == ReadResult::ok && !index_.holds(print_of(hot), slot)) {
      // Whoever evicts it now takes the entry out under the lock that is held here.
      if (index_.insert(print_of(hot), slot)) {
        V::confirm(Point::lane, index_.own_lane(print_of(hot)), kLine);
        context_.count(Count::repaired);
      }
    }
  }

  /// Under the lock no slot begins a new life, so that an entry which leads nowhere stays one.
  void scrub_lanes(std::uint32_t budget) {
    const std::uint64_t buckets = pool_.sb().buckets;
    for (std::uint64_t n = std::min<std::uint64_t>(budget, buckets); n; --n) {
      context_.count(Count::repaired, index_.scrub_lane(lane_cursor_++ & (buckets - 1), false));
    }
  }

  /// READY and FREE belong to no process; WRITING and CLOSING to one that exists.
  bool owner_plausible(std::uint64_t word) const {
    const std::uint32_t process = process_of(word);
    const SlotState state = state_of(word);
    if (state == SlotState::ready || state == SlotState::free) return true;
    return process >= 1 && process <= kMaxProcesses &&
           __atomic_load_n(&control_.process(process - 1).state, __ATOMIC_ACQUIRE) != 0;
  }

  HostContext& context_;
  const PoolMemory& pool_;
  const ControlBlock& control_;
  Index<V>& index_;
  Hosts<V>& hosts_;
  Leases<V>& leases_;
  Extents<V>& extents_;
  Slots<V>& slots_;
  Eviction<V>& eviction_;
  std::vector<std::byte> scrub_cold_;
  std::uint64_t lane_cursor_ = 0;
  std::uint32_t stamp_cursor_ = 0;
};

}  // namespace beluga
