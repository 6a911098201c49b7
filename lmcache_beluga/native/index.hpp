#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "descriptor.hpp"
#include "host_context.hpp"

namespace beluga {

/// Where a key was found: its slot, and the descriptor word it was confirmed under.
struct Found {
  std::uint32_t slot = 0;
  std::uint64_t word = 0;  // 0: not found (no descriptor of a chunk has the word 0)
  explicit operator bool() const noexcept { return word != 0; }
};

/// The hash table: buckets of one lane per host. Lookups lock nothing; a host's processes change their own
/// lanes by compare-and-swap, so that one killed half-way leaves nothing to repair.
template <class V>
class Index {
 public:
  explicit Index(const HostContext& context) : context_(context), pool_(*context.pool) {}

  /// Finds keys in order, until the first that is absent if `stop_at_miss`. Returns how many of the first
  /// keys were examined; `out` has as many elements as `prints`.
  ///
  /// All lines of a block of keys are observed before one is consumed: a lookup costs memory bandwidth, not
  /// one latency after the other.
  std::size_t find(std::span<const Fingerprint> prints, std::span<Found> out, bool stop_at_miss) const {
    const std::uint64_t hosts = context_.active_hosts();
    std::size_t done = 0;
    while (done < prints.size()) {
      const std::size_t n = std::min(kBlock, prints.size() - done);
      find_block(prints.subspan(done, n), out.subspan(done, n), hosts);
      if (stop_at_miss) {
        for (std::size_t i = 0; i < n; ++i) {
          if (!out[done + i]) return done + i;
        }
      }
      done += n;
    }
    return done;
  }

  Found find_one(const Fingerprint& print) const {
    Found found;
    find({&print, 1}, {&found, 1}, false);
    return found;
  }

  /// Takes an entry of this host's lane for a slot whose descriptor already carries the fingerprint. False
  /// when all entries are taken. Other hosts see it once the caller has confirmed the lane.
  /// SYNC POINT: lane (with find_block on the other hosts)
  bool insert(const Fingerprint& print, std::uint32_t slot) const {
    const std::uint64_t entry = make_entry(print.hi, slot);
    for (std::uint64_t& place : own_lane(print)->entries) {
      if (V::load(&place) == 0 && V::template exchange_if<std::uint64_t>(&place, 0, entry)) return true;
    }
    return false;
  }

  /// Removes a slot's entry from this host's lane; false when it has none there. Not confirmed: an entry that
  /// another host still sees leads to a descriptor which no longer confirms it.
  bool remove(const Fingerprint& print, std::uint32_t slot) const {
    const std::uint64_t entry = make_entry(print.hi, slot);
    bool removed = false;
    for (std::uint64_t& place : own_lane(print)->entries) {
      if (V::load(&place) == entry) removed |= V::template exchange_if<std::uint64_t>(&place, entry, 0);
    }
    if (removed) V::write_back_soon(Point::departed, own_lane(print));
    return removed;
  }

  /// How many entries of this host's lane name the slot for this key. One, for a chunk.
  std::uint32_t entries_of(const Fingerprint& print, std::uint32_t slot) const {
    const Lane* lane = own_lane(print);
    const std::uint64_t entry = make_entry(print.hi, slot);
    return static_cast<std::uint32_t>(
        std::count_if(std::begin(lane->entries), std::end(lane->entries),
                      [&](const std::uint64_t& place) { return V::load(&place) == entry; }));
  }

  bool holds(const Fingerprint& print, std::uint32_t slot) const { return entries_of(print, slot) != 0; }

  /// Every copy of a key: two hosts, or two processes of one, may have stored it at once.
  void find_all(const Fingerprint& print, std::vector<Found>& copies) const {
    const std::uint64_t hosts = context_.active_hosts();
    for (std::uint64_t rest = hosts; rest; rest &= rest - 1) {
      Found found;
      find_block({&print, 1}, {&found, 1}, rest & ~(rest - 1));
      if (found) copies.push_back(found);
    }
  }

  /// A copy of the key in an extent of this host, ready or closing.
  Found find_own(const Fingerprint& print) const {
    Found found;
    find_block({&print, 1}, {&found, 1}, std::uint64_t{1} << context_.host);
    return found;
  }

  Lane* own_lane(const Fingerprint& print) const {
    return pool_.lane(pool_.bucket_of(print.lo), context_.host);
  }

  /// Drops entries of this host's lane `bucket` that no descriptor confirms: what flipped bits leave behind.
  /// `from_dead` also drops those of slots that are being written, which nobody does any more at recovery.
  std::uint32_t scrub_lane(std::uint64_t bucket, bool from_dead) const {
    Lane* lane = pool_.lane(bucket, context_.host);
    std::uint32_t dropped = 0;
    for (std::uint64_t& place : lane->entries) {
      const std::uint64_t entry = V::load(&place);
      if (entry == 0 || confirmed(entry, bucket, from_dead)) continue;
      if (V::template exchange_if<std::uint64_t>(&place, entry, 0)) ++dropped;
    }
    if (dropped) V::write_back_soon(Point::departed, lane);
    return dropped;
  }

 private:
  static constexpr std::size_t kBlock = 64;
  static constexpr std::size_t kLinesAhead = 64;

  static std::uint32_t slot_of(std::uint64_t entry) { return static_cast<std::uint32_t>(entry) - 1; }

  bool confirmed(std::uint64_t entry, std::uint64_t bucket, bool from_dead) const {
    const std::uint32_t slot = slot_of(entry);
    if (!context_.slot_in_range(slot)) return false;
    if (!context_.control->extent(pool_.extent_of(slot)).owned) return false;
    HotDescriptor hot;
    const HotDescriptor* line = pool_.hot(slot);  // of an own extent
    if (!read_hot<V>(line, hot)) return true;  // somebody is changing it: alive
    if (!is_state(hot.word) || state_of(hot.word) == SlotState::free) return false;
    if (from_dead && state_of(hot.word) == SlotState::writing) return false;
    return pool_.bucket_of(hot.print_lo) == bucket && make_entry(hot.print_hi, slot) == entry;
  }

  /// SYNC POINT: lane (with insert, confirmed by Publication); ready (with Publication)
  void find_block(std::span<const Fingerprint> prints, std::span<Found> out, std::uint64_t hosts) const {
    const std::uint64_t others = hosts & ~(std::uint64_t{1} << context_.host);
    for (const Fingerprint& print : prints) {
      const std::uint64_t bucket = pool_.bucket_of(print.lo);
      if (hosts != others) V::prefetch(pool_.lane(bucket, context_.host));
      if (V::mode == VisibilityMode::coherent) continue;
      for (std::uint64_t rest = others; rest; rest &= rest - 1) {
        V::observe(Point::lane, pool_.lane(bucket, static_cast<std::uint32_t>(__builtin_ctzll(rest))), kLine);
      }
    }
    if (others != 0) V::observe_fence(Point::lane);
    std::array<Candidate, kBlock> candidates;
    const std::size_t ahead = keys_ahead(others);
    for (std::size_t i = 0, fetched = 0; i < prints.size(); ++i) {
      for (; fetched < std::min(i + ahead, prints.size()); ++fetched) fetch_lanes(prints[fetched], others);
      candidates[i] = next_candidate(prints[i], hosts, 0);
      if (candidates[i]) observe_hot(candidates[i].slot);
    }
    if (V::mode == VisibilityMode::noncoherent && others != 0) {
      V::observe_fence(Point::ready);
      for (std::size_t i = 0; i < prints.size(); ++i) {
        if (candidates[i]) V::prefetch(pool_.hot(candidates[i].slot));
      }
    }
    for (std::size_t i = 0; i < prints.size(); ++i) out[i] = confirm(prints[i], hosts, candidates[i]);
  }

  void observe_hot(std::uint32_t slot) const {
    if (context_.owns(slot)) {
      V::prefetch(pool_.hot(slot));
    } else {
      V::observe(Point::ready, pool_.hot(slot), kLine);
    }
  }

  /// Lines come from the device many at once, not one after the other; but no more than a CPU can wait
  /// for and its first cache holds: then those of the next keys come while one is looked at.
  static std::size_t keys_ahead(std::uint64_t others) {
    if (others == 0) return 0;
    return std::max<std::size_t>(1, kLinesAhead / static_cast<std::size_t>(__builtin_popcountll(others)));
  }

  void fetch_lanes(const Fingerprint& print, std::uint64_t others) const {
    const std::uint64_t bucket = pool_.bucket_of(print.lo);
    for (std::uint64_t rest = others; rest; rest &= rest - 1) {
      V::prefetch(pool_.lane(bucket, static_cast<std::uint32_t>(__builtin_ctzll(rest))));
    }
  }

  // The slot is what the entry said when it was read once: the entry may change under us, and the slot that it then
  // names has not been observed.
  struct Candidate {
    std::uint32_t place = ~0u;  // host << 3 | entry
    std::uint32_t slot = 0;
    explicit operator bool() const { return place != ~0u; }
  };

  Candidate next_candidate(const Fingerprint& print, std::uint64_t hosts, std::uint32_t from) const {
    const std::uint64_t bucket = pool_.bucket_of(print.lo);
    const std::uint64_t tag = print.hi >> 32;
    for (std::uint64_t rest = hosts; rest; rest &= rest - 1) {
      const auto h = static_cast<std::uint32_t>(__builtin_ctzll(rest));
      const Lane* lane = pool_.lane(bucket, h);
      for (std::uint32_t e = 0; e < kLaneEntries; ++e) {
        if ((h << 3 | e) < from) continue;
        const std::uint64_t entry = V::load(&lane->entries[e]);
        if (entry >> 32 != tag || static_cast<std::uint32_t>(entry) == 0) continue;
        if (context_.slot_in_range(slot_of(entry))) return {h << 3 | e, slot_of(entry)};
        context_.count(Count::garbage);
      }
    }
    return {};
  }

  /// Checks candidates against their descriptors, from this one on, until one is the key's.
  Found confirm(const Fingerprint& print, std::uint64_t hosts, Candidate candidate) const {
    Found closing;  // present, but a READY copy is worth more: that one can be leased
    for (bool first = true; candidate; first = false) {
      if (!first) {
        observe_hot(candidate.slot);
        V::observe_fence(Point::ready);
      }
      const Found found = confirm_hot(print, candidate.slot, pool_.hot(candidate.slot));
      if (found && state_of(found.word) == SlotState::ready) return found;
      if (found && !closing) closing = found;
      candidate = next_candidate(print, hosts, candidate.place + 1);
    }
    return closing;
  }

  /// Does the slot hold the key, READY or CLOSING?
  Found confirm_hot(const Fingerprint& print, std::uint32_t slot, const HotDescriptor* line) const {
    const auto present = [](std::uint64_t word) {
      return state_of(word) == SlotState::ready || state_of(word) == SlotState::closing;
    };
    // The first words decide; the sequence is checked around them as in read_hot.
    const std::uint64_t word = V::load(&line->word);
    const Fingerprint print_there{V::load(&line->print_lo), V::load(&line->print_hi)};
    std::atomic_thread_fence(std::memory_order_acquire);
    if (V::load(&line->word) == word && is_state(word)) {
      return present(word) && print_there == print ? Found{slot, word} : Found{};
    }
    // A change of state under our eyes: look once more through the seqlock.
    HotDescriptor hot;
    if (read_hot<V>(line, hot) && is_state(hot.word) && print_of(hot) == print && present(hot.word)) {
      return {slot, hot.word};
    }
    if (!is_state(word)) context_.count(Count::garbage);
    return {};
  }

  const HostContext& context_;
  const PoolMemory& pool_;
};

}  // namespace beluga
