#pragma once

#include <chrono>
#include <cstdio>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>

#include "pool_core.hpp"

namespace beluga {

/// Walks over everything in a pool: for `ls`, `inspect` and `check`. Takes no lock but, for `check`, the slot
/// lock while it looks at the free map.
template <class V>
class Walk {
 public:
  Walk(HostContext& context, Index<V>& index, Hosts<V>& hosts, Slots<V>& slots, Extents<V>& extents)
      : context_(context),
        pool_(*context.pool),
        index_(index),
        hosts_(hosts),
        slots_(slots),
        extents_(extents) {}

  std::vector<Entry> list(std::uint32_t& cursor, std::size_t most) {
    std::vector<Entry> entries;
    std::uint32_t slot = cursor;
    ExtentHeader header{};
    std::uint32_t loaded = ~0u;
    while (slot < pool_.slot_limit() && entries.size() < most) {
      const std::uint32_t e = pool_.extent_of(slot);
      const std::uint32_t i = slot - pool_.first_slot(e);
      if (e != loaded && !extents_.read_header(e, header)) header = ExtentHeader{};
      loaded = e;
      if (i >= header.slots) {
        slot = pool_.first_slot(e) + pool_.sb().slots_per_extent;
        continue;
      }
      Record record;
      if (read(slot, record)) {
        Entry& entry = entries.emplace_back();
        entry.record.assign(record.key().begin(), record.key().end());
        entry.meta.assign(record.meta().begin(), record.meta().end());
        entry.size = record.hot.size;
        entry.generation = generation_of(record.hot.word);
        entry.host = header.owner;
        entry.extent = e;
        entry.slot = slot;
        entry.depth = record.hot.depth;
        entry.closing = state_of(record.hot.word) == SlotState::closing;
        // A chunk's birth is told in its owner's ticks.
        const SlotUse use = slot_use(context_, hosts_, slot, born_here(header.owner, record.hot.born));
        entry.idle_ms = use.idle_ms;
        entry.leased = use.leased;
      }
      ++slot;
    }
    cursor = slot;
    return entries;
  }

  Occupancy occupancy() {
    Occupancy all;
    std::map<std::uint32_t, CutUse> cuts;
    for (std::uint32_t e = 0; e < pool_.sb().extents; ++e) {
      const ExtentControl& control = context_.control->extent(e);
      if (!control.owned) {
        continue;
      }
      ++all.extents_owned;
      if (control.slots == 0) continue;
      CutUse& cut = cuts[control.slots];
      cut.slot_size = control.slot_size;
      ++cut.extents;
      cut.slots += control.slots;
      for (std::uint32_t i = 0; i < control.slots; ++i) {
        if (slots_.is_free(e, i)) continue;
        const std::uint32_t slot = pool_.first_slot(e) + i;
        HotDescriptor hot;
        if (!read_hot<V>(pool_.hot(slot), hot) || !is_state(hot.word)) continue;
        const SlotState state = state_of(hot.word);
        all.writing += state == SlotState::writing;
        all.closing += state == SlotState::closing;
        all.leased += (V::load(context_.control->lease_mask(slot)) & 0xffff'ffffu) != 0;
        if (state != SlotState::ready || !fits(pool_.sb(), hot)) continue;
        ++cut.used;
        cut.bytes += hot.size;
        ++all.chunks;
        all.bytes += hot.size;
        all.wasted += control.slot_size - std::min<std::uint64_t>(control.slot_size, hot.size);
      }
    }
    all.extents_free = static_cast<std::uint32_t>(extents_.unclaimed().size());
    for (const auto& [slots, cut] : cuts) all.cuts.push_back(cut);
    return all;
  }

  std::vector<HostView> hosts() {
    std::vector<HostView> views;
    for (std::uint32_t h = 0; h < pool_.sb().max_hosts; ++h) {
      HostView view = read_host_page<V>(pool_, h);
      if (view.state == static_cast<std::uint32_t>(HostState::never)) continue;
      const typename Hosts<V>::Clock clock = hosts_.clock_of(h);
      view.self = h == context_.host;
      view.live = clock.live && !view.left;
      view.silent_ms = clock.silent_ms;
      views.push_back(std::move(view));
    }
    return views;
  }

  /// Validates every record that this host can judge: the superblock, the headers and descriptors of all
  /// extents, and this host's lanes and free map. Slots that change meanwhile are looked at again.
  ///
  /// Whoever is stopped between two looks at what belongs together sees them at different times, and damage where
  /// there is none. So damage is what a second check of everything finds in the same place.
  CheckReport check() {
    const std::lock_guard one_at_a_time(checking_);
    found_.clear();
    CheckReport report = look();
    if (report.problems == 0 || found_.size() >= kMostFound) return report;
    before_.swap(found_);
    found_.clear();
    again_ = true;
    report = look();
    again_ = false;
    return report;
  }

 private:
  CheckReport look() {
    CheckReport report;
    report_ = &report;
    check_superblock();
    std::unordered_map<std::uint32_t, std::uint32_t> indexed;  // slot -> entries that name it
    check_lanes(indexed);
    for (std::uint32_t e = 0; e < pool_.sb().extents; ++e) check_extent(e, indexed);
    report_ = nullptr;
    return report;
  }

  /// Reads a chunk whole; false if the slot holds none, or is being changed.
  bool read(std::uint32_t slot, Record& record) {
    const HotDescriptor* line = pool_.hot(slot);
    V::observe(Point::record, line, kLine);
    V::observe(Point::record, pool_.cold(slot), pool_.sb().record_bytes);
    V::observe_fence(Point::record);
    if (!read_hot<V>(line, record.hot) || !is_state(record.hot.word)) return false;
    const SlotState state = state_of(record.hot.word);
    if (state != SlotState::ready && state != SlotState::closing) return false;
    return read_cold<V>(pool_, slot, record.hot, record.cold) == ReadResult::ok;
  }

  /// An owner's tick as the one of this host that is as long ago.
  std::uint32_t born_here(std::uint32_t owner, std::uint32_t born) {
    if (owner == context_.host || owner >= pool_.sb().max_hosts) return born;
    return context_.tick() - (hosts_.clock_of(owner).tick - born);
  }

  /// The first of `args` says where.
  template <class... Args>
  void problem(const char* format, Args... args) {
    const Problem found{format, place_of(args...)};
    if (found_.size() < kMostFound) found_.insert(found);
    if (again_ && !before_.contains(found)) return;
    ++report_->problems;
    if (report_->errors.size() >= kCheckErrors) return;
    char text[256];
    std::snprintf(text, sizeof(text), format, args...);
    report_->errors.emplace_back(text);
  }

  void check_superblock() {
    Superblock sb;
    V::observe(Point::superblock, pool_.shared_superblock(), sizeof(sb));
    V::observe_fence(Point::superblock);
    load_words<V>(&sb, pool_.shared_superblock(), sizeof(sb));
    if (sb.magic != kMagic) problem("superblock: the magic is damaged");
    if (sb.crc != superblock_crc(sb)) {
      problem("superblock: the CRC does not match; the pool works until it is attached again");
    }
  }

  void check_lanes(std::unordered_map<std::uint32_t, std::uint32_t>& indexed) {
    for (std::uint64_t b = 0; b < pool_.sb().buckets; ++b) {
      for (const std::uint64_t& place : pool_.lane(b, context_.host)->entries) {
        const std::uint64_t entry = V::load(&place);
        if (entry == 0) continue;
        ++report_->lane_entries;
        const std::uint32_t slot = static_cast<std::uint32_t>(entry) - 1;
        if (!context_.slot_in_range(slot)) {
          problem("bucket %llu: an entry names slot %u, which does not exist", ull(b), slot);
          continue;
        }
        HotDescriptor hot;
        if (!read_hot<V>(pool_.hot(slot), hot)) continue;
        if (V::load(&place) != entry) continue;  // removed meanwhile
        if (!is_state(hot.word) || state_of(hot.word) == SlotState::free) {
          problem("bucket %llu: an entry names slot %u, which is free", ull(b), slot);
        } else if (pool_.bucket_of(hot.print_lo) != b || make_entry(hot.print_hi, slot) != entry) {
          if (state_of(hot.word) != SlotState::writing) {
            problem("bucket %llu: an entry names slot %u, which holds another key", ull(b), slot);
          }
        } else {
          ++indexed[slot];
        }
      }
    }
  }

  void check_extent(std::uint32_t e, std::unordered_map<std::uint32_t, std::uint32_t>& indexed) {
    const ExtentControl& control = context_.control->extent(e);
    ExtentHeader header{};
    bool mine = false;
    if (!check_cut(e, header, mine)) return;
    for (std::uint32_t i = 0; i < header.slots; ++i) check_slot(pool_.first_slot(e) + i, e, mine, indexed);
    if (!mine) return;
    // The free map only holds still under the slot lock.
    typename Slots<V>::Locked lock(slots_);
    if (!lock) return;
    std::uint32_t mapped = 0;
    for (std::uint32_t i = 0; i < control.slots; ++i) {
      const std::uint64_t word = V::load(&pool_.hot(pool_.first_slot(e) + i)->word);
      const bool is_free = is_state(word) && state_of(word) == SlotState::free;
      if (is_free != slots_.is_free(e, i)) {
        problem("slot %u: the free map says %s, the descriptor says otherwise", pool_.first_slot(e) + i,
                is_free ? "taken" : "free");
      }
      mapped += slots_.is_free(e, i);
    }
    const std::uint32_t counted = control.free;
    if (mapped != counted) problem("extent %u: %u slots are free, it counts %u", e, mapped, counted);
  }

  /// Whose the extent is and how it is cut. True: there are slots to look at, of an extent of this host if
  /// `mine`.
  bool check_cut(std::uint32_t e, ExtentHeader& header, bool& mine) {
    // Own extents are claimed, cut and released under the slot lock.
    typename Slots<V>::Locked lock(slots_);
    if (!lock) return false;
    const ExtentControl& control = context_.control->extent(e);
    std::uint32_t owners = 0;
    for (std::uint32_t h = 0; h < pool_.sb().max_hosts; ++h) {
      const auto claim = static_cast<std::uint32_t>(extents_.claim_of(h, e));
      if (claim > 3) problem("extent %u: host %u's claim has the value %u", e, h, claim);
      owners += claim == static_cast<std::uint32_t>(Claim::owned);
    }
    if (owners > 1) problem("extent %u: %u hosts own it", e, owners);
    mine = control.owned;
    if (mine && extents_.claim_of(context_.host, e) != Claim::owned) {
      problem("extent %u: in use here, and not claimed", e);
    }
    if (owners == 0 || (mine && control.slots == 0)) return false;
    bool readable = extents_.read_header(e, header);
    // Another host may be stopped, or have died, between its claim and its first cut, or while it gives up.
    if (!readable && !mine && header.slot_size == 0) return false;
    for (int i = 0; !readable && !mine && i < kHeaderRetries; ++i) {  // another host may be cutting it
      V::sleep_us(1000);
      readable = extents_.read_header(e, header);
    }
    if (!readable) {
      problem("extent %u: its header is damaged", e);
    } else if (mine && control.slots != header.slots) {
      problem("extent %u: cut into %u slots, its header says %u", e, std::uint32_t{control.slots}, header.slots);
    }
    return readable;
  }

  void check_slot(std::uint32_t slot, std::uint32_t e, bool mine,
                  std::unordered_map<std::uint32_t, std::uint32_t>& indexed) {
    ++report_->slots;
    const HotDescriptor* line = pool_.hot(slot);
    V::observe(Point::record, line, kLine);
    V::observe(Point::record, pool_.cold(slot), pool_.sb().record_bytes);
    V::observe_fence(Point::record);
    Record record;
    if (!read_hot<V>(line, record.hot)) return;
    const HotDescriptor& hot = record.hot;
    if (!is_state(hot.word)) {
      problem("slot %u: state %u does not exist", slot, static_cast<std::uint32_t>(hot.word & 0xff));
      return;
    }
    const SlotState state = state_of(hot.word);
    const bool changing = state == SlotState::writing || state == SlotState::closing;
    if (state != SlotState::free && (process_of(hot.word) != 0) != changing) {
      problem("slot %u: in state %u by process %u", slot, static_cast<std::uint32_t>(state),
              process_of(hot.word));
    }
    switch (state) {
      case SlotState::free:
        ++report_->free;
        return;
      case SlotState::writing:
        ++report_->writing;
        return;
      case SlotState::closing:
        ++report_->closing;
        break;
      case SlotState::ready:
        ++report_->chunks;
        break;
    }
    switch (read_cold<V>(pool_, slot, hot, record.cold)) {
      case ReadResult::unstable:
        return;
      case ReadResult::garbage:
        problem("slot %u of extent %u: its descriptor is damaged (CRC or bounds)", slot, e);
        return;
      case ReadResult::ok:
        break;
    }
    if (fingerprint(record.key()) != print_of(hot)) {
      problem("slot %u: its fingerprint is not that of its key", slot);
    }
    if (!mine || state_of(hot.word) != SlotState::ready) return;
    const auto it = indexed.find(slot);
    if (it == indexed.end() && !index_.holds(print_of(hot), slot) && V::load(&line->word) == hot.word) {
      // Unless the extent went to another host meanwhile, whose lanes name it. It does not come back with this chunk.
      if (!context_.owns(slot)) return;
      problem("slot %u: a chunk that the index does not know", slot);
    } else if (it != indexed.end() && it->second > 1) {
      // The slot may have been reused while the lanes were read: counted again where its key belongs.
      const std::uint32_t entries = index_.entries_of(print_of(hot), slot);
      if (entries > 1 && V::load(&line->word) == hot.word) problem("slot %u: %u entries name it", slot, entries);
    }
  }

  static std::uint64_t place_of() { return 0; }
  template <class... Rest>
  static std::uint64_t place_of(std::uint64_t first, Rest...) {
    return first;
  }

  static constexpr int kHeaderRetries = 10;
  static constexpr std::size_t kMostFound = 100'000;  // so much is damage

  static unsigned long long ull(std::uint64_t n) { return n; }

  HostContext& context_;
  const PoolMemory& pool_;
  Index<V>& index_;
  Hosts<V>& hosts_;
  Slots<V>& slots_;
  Extents<V>& extents_;
  // Of the check that is under way.
  typename V::Mutex checking_;
  CheckReport* report_ = nullptr;
  using Problem = std::pair<const char*, std::uint64_t>;  // what, and where
  std::set<Problem> found_;
  std::set<Problem> before_;  // what the check before this one had found
  bool again_ = false;
};

}  // namespace beluga
