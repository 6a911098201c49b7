#pragma once

#include <cstring>

#include <unistd.h>

#include "slots.hpp"
#include "stamps.hpp"

namespace beluga {

/// Writes who this host is into its page.
template <class V>
void publish_identity(const HostContext& context, std::uint64_t key_scheme) {
  HostPage& page = *context.pool->host(context.host);
  HostIdentity identity{};
  identity.state = static_cast<std::uint32_t>(HostState::member);
  identity.incarnation = context.header().incarnation;
  identity.nonce = context.header().nonce;
  read_machine_id(identity.machine);
  identity.key_scheme = key_scheme;
  identity.epoch = context.sb().epoch;
  identity.joined_unix_ms = unix_ms();
  identity.crc = crc32c(0, {reinterpret_cast<const std::byte*>(&identity), 56});
  store_words<V>(&page.identity, &identity, sizeof(identity));
  V::publish(&page.identity, kLine);
  V::confirm(&page.identity);
}

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

  void run(std::uint64_t key_scheme) {
    HostPage& page = *pool_.host(context_.host);
    ControlHeader& header = context_.header();
    HostIdentity identity;
    load_words<V>(&identity, &page.identity, sizeof(identity));
    if (key_scheme == 0) key_scheme = identity.key_scheme;  // of the chunks that are here already

    // The tick goes on where it stopped, so that recency outlives the processes.
    const std::uint32_t last_tick = V::load(&page.heartbeat.tick);
    header.incarnation = identity.incarnation + 1;
    header.tick_base = boot_ms() - last_tick - 1;
    header.last_beat = boot_ms();
    header.lease_epoch = 1;

    publish_identity<V>(context_, key_scheme);
    char name[sizeof(page.name)] = {};
    gethostname(name, sizeof(name) - 1);
    store_words<V>(page.name, name, sizeof(name));
    V::publish(page.name, sizeof(name));
    hosts_.refresh_active();

    recover_extents();
    V::store(&header.ready, std::uint32_t{1});
  }

 private:
  void recover_extents() {
    bool any = false;
    for (std::uint32_t e = 0; e < pool_.sb().extents; ++e) {
      const Claim claim = extents_.claim_of(context_.host, e);
      lower_stamps(e);
      any |= claim != Claim::none;
      if (claim != Claim::owned) {
        if (!damaged_claim(e)) {
          // Free, or an election that this host did not live to finish, or garbage.
          if (claim != Claim::none) extents_.publish_claim(e, Claim::none);
          continue;
        }
        extents_.publish_claim(e, Claim::owned);
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

  /// Is an extent this host's although its claim does not say so? A header is written after the claim is OWNED,
  /// and voided before the claim goes: one of this host's own is proof, unless somebody else has the extent.
  bool damaged_claim(std::uint32_t e) {
    ExtentHeader header;
    if (!extents_.read_header(e, header) || header.owner != context_.host) return false;
    for (std::uint32_t h = 0; h < pool_.sb().max_hosts; ++h) {
      if (h != context_.host && extents_.claim_of(h, e) != Claim::none) return false;
    }
    return true;
  }

  void recover_extent(std::uint32_t e) {
    ExtentControl& control = context_.control->extent(e);
    control = ExtentControl{};
    control.owned = 1;
    ExtentHeader header;
    if (!extents_.read_header(e, header) || header.owner != context_.host) {
      // Claimed but never cut, or its header is damaged: its chunks cannot be trusted. Every descriptor that
      // could carry one is voided, and the extent is cut anew when it is needed.
      for (std::uint32_t i = 0; i < pool_.sb().slots_per_extent; ++i) void_slot(pool_.first_slot(e) + i);
      return;
    }
    pool_.reserve_descriptors(e, header.slots);
    extents_.reserve_leases(e);
    control.slot_size = header.slot_size;
    control.slots = header.slots;
    const std::uint32_t first = pool_.first_slot(e);
    for (std::uint32_t i = 0; i < header.slots; ++i) {
      const bool free = recover_slot(first + i);
      if (free) slots_.set_free(e, i, true);
      if (!free) control.reserved_bytes = (std::uint64_t{i} + 1) * header.slot_size;
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
      // Half evicted: it stays only for a lease on another host, as long as the index still knows it.
      keep = index_.holds(print_of(hot), slot) && slot_use(context_, hosts_, slot, hot.born).leased;
    }
    if (keep && !index_.holds(print_of(hot), slot)) {
      keep = index_.insert(print_of(hot), slot);
      context_.count(Count::repaired);
    }
    if (keep) {
      const std::uint64_t ready = make_word(generation_of(hot.word), 0, SlotState::ready);
      if (hot.word != ready) publish_word<V>(line, ready);
      return false;
    }
    index_.remove(print_of(hot), slot);
    publish_word<V>(line, make_word(generation_of(hot.word) + 1, 0, SlotState::free));
    return true;
  }

  void void_slot(std::uint32_t slot) {
    HotDescriptor* line = pool_.hot(slot);
    const std::uint64_t word = V::load(&line->word);
    if (word == 0 || (is_state(word) && state_of(word) == SlotState::free)) return;
    publish_word<V>(line, make_word(generation_of(word) + 1, 0, SlotState::free));
    context_.count(Count::garbage);
  }

  /// No lease outlives the processes that held it. What is left of a stamp is its recency.
  void lower_stamps(std::uint32_t e) {
    ExtentHeader header;
    if (!extents_.read_header(e, header)) return;
    const std::uint32_t now = context_.tick();
    pool_.reserve_stamps(context_.host, e, header.slots);
    for (std::uint32_t i = 0; i < header.slots; ++i) {
      std::uint32_t* stamp = pool_.stamp(context_.host, pool_.first_slot(e) + i);
      const std::uint32_t seen = V::load(stamp);
      if (seen != 0 && static_cast<std::int32_t>(seen - now) > 0) {
        V::store(stamp, now);
        V::publish(stamp, 4);
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
