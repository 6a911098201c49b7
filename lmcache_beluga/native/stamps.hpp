#pragma once

#include <algorithm>
#include <cstdint>

#include "hosts.hpp"

namespace beluga {

/// How recently a slot was used, and whether anybody leases it, read from every active host's stamps.
struct SlotUse {
  bool leased = false;
  std::uint64_t idle_ms = 0;  // since the newest use on any host
};

/// Reads all stamps of a slot, freshly observed, and tells them in clocks that were read before. Not after: a reader
/// that renews in between has a newer stamp, and its clock has passed the one that was read. `born`: the owner's tick
/// when the chunk was published, which counts as its first use.
/// SYNC POINT: stamp (with Leases::hold)
template <class V>
SlotUse slot_use(HostContext& context, Hosts<V>& hosts, const typename Hosts<V>::Clocks& clocks, std::uint32_t slot,
                 std::uint32_t born) {
  const PoolMemory& pool = *context.pool;
  const std::uint64_t active = context.active_hosts();
  for (std::uint64_t rest = active; rest; rest &= rest - 1) {
    const auto h = static_cast<std::uint32_t>(__builtin_ctzll(rest));
    if (h != context.host) V::observe(Point::stamp, pool.stamp(h, slot), 4);
  }
  V::observe_fence(Point::stamp);
  SlotUse use;
  const auto own_age = static_cast<std::int32_t>(context.tick() - born);
  use.idle_ms = own_age > 0 ? static_cast<std::uint64_t>(own_age) : 0;
  for (std::uint64_t rest = active; rest; rest &= rest - 1) {
    const auto h = static_cast<std::uint32_t>(__builtin_ctzll(rest));
    const std::uint32_t stamp = V::load(pool.stamp(h, slot));
    if (stamp == 0) continue;
    const bool known = clocks.hosts >> h & 1;
    const typename Hosts<V>::Clock clock = known ? clocks.of[h] : hosts.clock_of(h);
    const auto ahead = static_cast<std::int32_t>(stamp - clock.tick);
    bool live = clock.live && ahead > 0;
    if (live && !stamp_is_live(stamp, clock.tick, context.sb().max_lease_ms)) {
      // Garbage, or of a beat after that look at the clock. Whether it has run out since cannot be told.
      const std::uint32_t tick = hosts.clock_of(h).tick;
      live = static_cast<std::int32_t>(stamp - tick) <= 0 || stamp_is_live(stamp, tick, context.sb().max_lease_ms);
    }
    if (live) {
      use.leased = true;
      use.idle_ms = 0;
    } else if (ahead <= 0) {
      use.idle_ms = std::min<std::uint64_t>(use.idle_ms, clock.tick - stamp);
    }
  }
  return use;
}

/// The look that decides whether a closed chunk's slot may be used anew.
template <class V>
bool leased_by_any(HostContext& context, Hosts<V>& hosts, std::uint32_t slot) {
  const typename Hosts<V>::Clocks clocks = hosts.clocks();
  // Its fence also keeps the flush of the stamps behind the look at the clocks.
  hosts.refresh_active();
  return slot_use(context, hosts, clocks, slot, 0).leased;
}

}  // namespace beluga
