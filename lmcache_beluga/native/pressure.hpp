#pragma once

#include <algorithm>
#include <cstdint>

#include "eviction.hpp"

namespace beluga {

/// How free capacity flows to whoever needs it. A host that had to evict for want of an extent says how many it could
/// use, and how cold the chunk is that it would evict next. Hosts whose extents are empty, or clearly colder, drain
/// the coldest and give it up. So the coldest chunks of the whole pool go first, whoever owns them. A host that has
/// nothing to evict could store nothing at all: when nobody has had colder ones for some beats, each that has several
/// extents gives it one, however warm.
template <class V>
class Pressure {
 public:
  Pressure(HostContext& context, Hosts<V>& hosts, Slots<V>& slots, Eviction<V>& eviction)
      : context_(context), pool_(*context.pool), hosts_(hosts), slots_(slots), eviction_(eviction) {}

  /// Extents that this host could use and cannot have, as of `now`: what was evicted for want of them lately, or, if it
  /// `starves` with nothing to evict, could not be stored.
  std::uint32_t own_demand(std::uint64_t now, bool starves) {
    ControlHeader& header = context_.header();
    const std::uint64_t bytes = __atomic_exchange_n(&header.shortage_bytes, 0, __ATOMIC_ACQ_REL);
    const std::uint64_t extents = std::min<std::uint64_t>(
        (bytes + context_.sb().extent_size - 1) / context_.sb().extent_size, kMostDemand);
    const std::uint32_t tick = context_.tick_at(now);
    for (std::uint32_t attempt = 0; attempt < kMaxProcesses; ++attempt) {
      const std::uint64_t seen = V::load(&header.demand);
      Demand demand = faded(Demand::unpack(seen), tick);
      if (extents << kDemandFraction > demand.extents) {
        demand = {static_cast<std::uint32_t>(extents << kDemandFraction), tick};
      }
      if (demand.pack() != seen && !V::exchange_if(&header.demand, seen, demand.pack())) continue;
      const std::uint32_t whole = std::min(demand.extents >> kDemandFraction, context_.sb().extents);
      return starves && demand.extents != 0 ? std::max(whole, 1U) : whole;
    }
    // Others of this host have told what they lack meanwhile; the next beat tells of this.
    __atomic_fetch_add(&header.shortage_bytes, bytes, __ATOMIC_RELAXED);
    return 0;
  }

  /// Answers what the others published. Called after a heartbeat has read their clocks. Returns how many extents were
  /// given up.
  std::uint32_t relieve() {
    std::uint64_t demand = 0;
    bool starving = false;
    std::uint64_t hottest = ~std::uint64_t{0};
    const std::uint64_t others = context_.active_hosts() & ~(std::uint64_t{1} << context_.host);
    for (std::uint64_t rest = others; rest; rest &= rest - 1) {
      const auto h = static_cast<std::uint32_t>(__builtin_ctzll(rest));
      const HostHeartbeat& beat = pool_.host(h)->heartbeat;
      const std::uint32_t pressure = V::load(&beat.pressure);
      if (pressure == 0 || pressure > context_.sb().extents || !hosts_.judge(h).live) continue;
      demand += pressure;
      const std::uint32_t age = V::load(&beat.coldest_age_ms);
      starving |= age == 0;
      hottest = std::min<std::uint64_t>(hottest, age);
    }
    const std::uint64_t unclaimed = demand == 0 ? 0 : slots_.unclaimed_extents();
    const bool enough = unclaimed >= demand;
    starving_beats_ = starving && !enough ? starving_beats_ + 1 : 0;
    if (enough) return 0;
    // The next heartbeat must not be late: whatever takes longer follows then.
    const std::uint64_t until = context_.now_ms() + context_.options.heartbeat_ms / 2;
    const auto most = static_cast<std::uint32_t>(std::min<std::uint64_t>(demand - unclaimed, kPerBeat));
    const std::uint32_t given = eviction_.give_up(most, Eviction<V>::clearly_older(hottest), until);
    if (given != 0 || starving_beats_ < kPatience) return given;
    starving_beats_ = 0;
    slots_.refresh_owned();
    const std::size_t own = slots_.all_owned().size();
    return own < 2 ? 0 : eviction_.give_up(1, 0, until);
  }

 private:
  static constexpr std::uint64_t kPerBeat = 4;
  static constexpr std::uint32_t kPatience = 3;
  static constexpr unsigned kDemandFraction = 16;  // bits behind the point: one extent is nothing after some 35 beats
  static constexpr std::uint64_t kMostDemand = 0xFFFF;  // extents

  /// ControlHeader::demand. One word, since all processes of the host change it.
  struct Demand {
    std::uint32_t extents;  // in 1/65536
    std::uint32_t as_of;    // the tick

    static Demand unpack(std::uint64_t word) noexcept {
      return {static_cast<std::uint32_t>(word >> 32), static_cast<std::uint32_t>(word)};
    }
    std::uint64_t pack() const noexcept { return std::uint64_t{extents} << 32 | as_of; }
  };

  /// What is left of it. It fades over some heartbeats, since others look once in each of theirs; and to nothing over
  /// some more, in which a host that starves still asks for one: it may store seldom, and those who could give wait for
  /// kPatience beats. By the clock: a host with many processes has many beats in that time.
  Demand faded(Demand demand, std::uint32_t tick) const noexcept {
    const std::uint32_t step = context_.options.heartbeat_ms;
    while (demand.extents != 0 && static_cast<std::int32_t>(tick - demand.as_of - step) >= 0) {
      demand = {static_cast<std::uint32_t>(std::uint64_t{demand.extents} * 3 / 4), demand.as_of + step};
    }
    return demand;
  }

  HostContext& context_;
  const PoolMemory& pool_;
  Hosts<V>& hosts_;
  Slots<V>& slots_;
  Eviction<V>& eviction_;
  std::uint32_t starving_beats_ = 0;  // for how many beats on end somebody had nothing to evict, and no room to claim
};

}  // namespace beluga
