#pragma once

#include <algorithm>
#include <cstring>

#include <unistd.h>

#include "identity.hpp"
#include "slots.hpp"
#include "stamps.hpp"

namespace beluga {

/// What the first process of a host does before anybody else of it may start: it rebuilds the control block from
/// the pool and finishes what the host's earlier processes left undone.
template <class V>
class Recovery {
 public:
  Recovery(HostContext& context, Index<V>& index, Hosts<V>& hosts, Slots<V>& slots, Extents<V>& extents)
      : context_(context),
        pool_(*context.pool),
        index_(index),
        hosts_(hosts),
        slots_(slots),
        extents_(extents) {}

  /// The tick goes on where it stopped, so that recency outlives the processes; the lease epoch begins. Before
  /// anything else of a new control block is used.
  void start_clock() {
    ControlHeader& header = context_.header();
    resume_tick();
    header.lease_epoch = 1;
    V::store(&header.active_hosts, std::uint64_t{1} << context_.host);
  }

  /// Right before the first heartbeat. An election or a long recovery may have taken longer than dead_after: to the
  /// other hosts, that much on this host's clock at once would mean that they themselves had stood still, and may have
  /// been judged dead meanwhile (Heartbeat::peers_moved). So that time has not been, neither for the tick nor for what
  /// this host has seen of the others.
  void forget_the_wait() {
    hosts_.forget_sights();
    resume_tick();
  }

  /// Once the host page is this host's.
  void run() {
    HostPage& page = *pool_.host(context_.host);
    ControlHeader& header = context_.header();
    char name[sizeof(page.name)] = {};
    gethostname(name, sizeof(name) - 1);
    store_words<V>(page.name, name, sizeof(name));
    V::publish(Point::statistics, page.name, sizeof(name));

    observe_own();
    recover_extents();
    V::store(&header.ready, std::uint32_t{1});
  }

 private:
  void resume_tick() {
    const HostHeartbeat& beat = pool_.host(context_.host)->heartbeat;
    ControlHeader& header = context_.header();
    V::observe(Point::recovery, &beat, kLine);
    V::observe_fence(Point::recovery);
    header.last_beat = context_.now_ms() - 1;  // so that the first heartbeat is one
    header.tick_base = header.last_beat - std::max(V::load(&beat.tick), 1u);  // 0 stands for none
  }

  /// What this host wrote last may have been written on another machine: no line of it that lies in a cache here is
  /// trusted. Extent by extent, the rest follows.
  /// SYNC POINT: recovery (with every confirm of this host's earlier processes)
  void observe_own() {
    const Superblock& sb = pool_.sb();
    V::observe(Point::recovery, pool_.claims(context_.host), sb.extents);
    for (std::uint64_t b = 0; b < sb.buckets; ++b) V::observe(Point::recovery, pool_.lane(b, context_.host), kLine);
    V::observe_fence(Point::recovery);
  }

  void recover_extents() {
    bool any = false;
    for (std::uint32_t e = 0; e < pool_.sb().extents; ++e) {
      const Claim claim = extents_.claim_of(context_.host, e);
      lower_stamps(e);
      any |= claim != Claim::none;
      if (!is_mine(e, claim)) {
        // Free, or an election that this host did not live to finish, or garbage.
        if (claim != Claim::none) extents_.publish_claim(e, Claim::none);
        continue;
      }
      if (claim != Claim::owned) {
        // Somebody may be claiming it just now.
        if (!extents_.claim(e)) continue;
        context_.count(Count::repaired);
      }
      any = true;
      recover_extent(e);
    }
    __atomic_fetch_add(&context_.header().cuts, 1, __ATOMIC_ACQ_REL);
    if (!any) return;
    for (std::uint64_t b = 0; b < pool_.sb().buckets; ++b) {
      if (const std::uint32_t dropped = index_.scrub_lane(b, true)) context_.count(Count::repaired, dropped);
    }
  }

  /// Two records say whose an extent is: the claim, and the header, which is written after the claim is OWNED and
  /// voided before the claim goes. Either may be damaged. Where they contradict each other nobody may come to share an
  /// extent with another owner.
  bool is_mine(std::uint32_t e, Claim claim) {
    ExtentHeader header;
    const bool headed = extents_.read_header(e, header);
    if (headed && header.owner != context_.host) return false;
    if (headed && claim == Claim::owned) return true;
    bool others = false;
    for (std::uint32_t h = 0; h < pool_.sb().max_hosts; ++h) {
      const Claim theirs = h == context_.host ? Claim::none : extents_.claim_of(h, e);
      // Beside an OWNED claim of this host, an election of somebody else's is one that he is about to lose.
      others |= theirs != Claim::none && (claim != Claim::owned || theirs != Claim::claiming);
    }
    return !others && (headed || claim == Claim::owned);
  }

  void recover_extent(std::uint32_t e) {
    ExtentControl& control = context_.control->extent(e);
    control = ExtentControl{};
    ExtentHeader header;
    const bool readable = extents_.read_header(e, header) && header.owner == context_.host;  // observed: not owned yet
    control.owned = 1;
    if (!readable) {
      // Claimed but never cut, or its header is damaged: its chunks cannot be trusted. Every descriptor that
      // could carry one is voided, and the extent is cut anew when it is needed.
      for (std::uint32_t i = 0; i < pool_.sb().slots_per_extent; ++i) void_slot(pool_.first_slot(e) + i);
      extents_.void_header(e);
      return;
    }
    pool_.reserve_descriptors(e, header.slots);
    extents_.reserve_leases(e);
    V::observe(Point::recovery, pool_.hot(pool_.first_slot(e)), std::uint64_t{header.slots} * kLine);
    V::observe(Point::recovery, pool_.cold(pool_.first_slot(e)), std::uint64_t{header.slots} * pool_.sb().record_bytes);
    V::observe_fence(Point::recovery);
    control.slot_size = header.slot_size;
    control.slots = header.slots;
    const std::uint32_t first = pool_.first_slot(e);
    for (std::uint32_t i = 0; i < header.slots; ++i) {
      // Also a slot that somebody was writing: what he left in a cache is flushed before the extent goes.
      const std::uint64_t word = V::load(&pool_.hot(first + i)->word);
      const bool had_storage = is_state(word) && state_of(word) != SlotState::free;
      const bool free = recover_slot(first + i);
      if (free) slots_.set_free(e, i, true);
      if (!free || had_storage) control.reserved_bytes = (std::uint64_t{i} + 1) * header.slot_size;
    }
  }

  /// Brings one slot into a lasting state. True: it is free.
  bool recover_slot(std::uint32_t slot) {
    HotDescriptor* line = pool_.hot(slot);
    HotDescriptor hot;
    load_words<V>(&hot, line, sizeof(hot));
    if (is_state(hot.word) && state_of(hot.word) == SlotState::free) return true;
    bool keep = is_state(hot.word) && state_of(hot.word) != SlotState::writing &&
                read_cold<V>(pool_, slot, hot, cold_) == ReadResult::ok &&
                fingerprint({cold_.data(), hot.record_bytes}) == print_of(hot) &&
                hot.offset + hot.size <= pool_.sb().extent_size;
    if (is_state(hot.word) && state_of(hot.word) != SlotState::writing && !keep) context_.count(Count::garbage);
    if (keep && state_of(hot.word) == SlotState::closing) {
      // Half evicted: it stays only for a lease on another host. If the index has lost it already, it is nobody's
      // chunk any more but its readers', and goes with the last of them.
      keep = leased_by_any(context_, hosts_, slot);
      if (keep && !index_.holds(print_of(hot), slot)) {
        const std::uint64_t mine = make_word(generation_of(hot.word), context_.process, SlotState::closing);
        publish_word<V>(Point::closing, line, mine);
        slots_.doomed().add(slot, mine);
        return false;
      }
    }
    if (keep && !index_.holds(print_of(hot), slot)) {
      keep = index_.insert(print_of(hot), slot);
      V::confirm(Point::lane, index_.own_lane(print_of(hot)), kLine);
      context_.count(Count::repaired);
    }
    if (keep) {
      const std::uint64_t ready = make_word(generation_of(hot.word), 0, SlotState::ready);
      if (hot.word != ready) publish_word<V>(Point::reopen, line, ready);
      return false;
    }
    index_.remove(print_of(hot), slot);
    publish_word<V>(Point::freed, line, make_word(generation_of(hot.word) + 1, 0, SlotState::free));
    return true;
  }

  void void_slot(std::uint32_t slot) {
    HotDescriptor* line = pool_.hot(slot);
    const std::uint64_t word = V::load(&line->word);
    if (word == 0 || (is_state(word) && state_of(word) == SlotState::free)) return;
    publish_word<V>(Point::void_slot, line, make_word(generation_of(word) + 1, 0, SlotState::free));
    context_.count(Count::garbage);
  }

  /// No lease outlives the processes that held it. What is left of a stamp is its recency.
  void lower_stamps(std::uint32_t e) {
    ExtentHeader header;
    if (!extents_.read_header(e, header)) return;
    const std::uint32_t now = context_.published_tick();
    pool_.reserve_stamps(context_.host, e, header.slots);
    V::observe(Point::recovery, pool_.stamp(context_.host, pool_.first_slot(e)), std::uint64_t{header.slots} * 4);
    V::observe_fence(Point::recovery);
    for (std::uint32_t i = 0; i < header.slots; ++i) {
      std::uint32_t* stamp = pool_.stamp(context_.host, pool_.first_slot(e) + i);
      const std::uint32_t seen = V::load(stamp);
      if (seen != 0 && static_cast<std::int32_t>(seen - now) > 0) {
        V::store(stamp, now);
        V::write_back_soon(Point::stamp_lowered, stamp);
      }
    }
  }

  HostContext& context_;
  const PoolMemory& pool_;
  Index<V>& index_;
  Hosts<V>& hosts_;
  Slots<V>& slots_;
  Extents<V>& extents_;
  std::vector<std::byte> cold_;
};

}  // namespace beluga
