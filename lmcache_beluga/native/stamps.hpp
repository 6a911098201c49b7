#pragma once

#include <cstdint>

#include "hosts.hpp"

namespace beluga {

/// How recently a slot was used, and whether anybody leases it, read from every active host's stamps.
struct SlotUse {
  bool leased = false;
  std::uint64_t idle_ms = 0;  // since the newest use on any host
};

/// Reads all stamps of a slot, and the clocks that they are told in, afresh. `born`: the owner's tick when the
/// chunk was published, which counts as its first use.
/// SYNC POINT: stamp (with Leases::hold)
template <class V>
SlotUse slot_use(HostContext& context, Hosts<V>& hosts, std::uint32_t slot, std::uint32_t born) {
  const PoolMemory& pool = *context.pool;
  const std::uint64_t active = context.active_hosts();
  for (std::uint64_t rest = active; rest; rest &= rest - 1) {
    const auto h = static_cast<std::uint32_t>(__builtin_ctzll(rest));
    if (h == context.host) continue;
    V::observe(Point::stamp, pool.stamp(h, slot), 4);
    hosts.observe_clock(h);
  }
  V::observe_fence(Point::stamp);
  SlotUse use;
  const auto own_age = static_cast<std::int32_t>(context.tick() - born);
  use.idle_ms = own_age > 0 ? static_cast<std::uint64_t>(own_age) : 0;
  for (std::uint64_t rest = active; rest; rest &= rest - 1) {
    const auto h = static_cast<std::uint32_t>(__builtin_ctzll(rest));
    const std::uint32_t stamp = V::load(pool.stamp(h, slot));
    if (stamp == 0) continue;
    const typename Hosts<V>::Clock clock = hosts.judge(h);
    if (clock.live && stamp_is_live(stamp, clock.tick, context.sb().max_lease_ms)) {
      use.leased = true;
      use.idle_ms = 0;
      continue;
    }
    const auto age = static_cast<std::int32_t>(clock.tick - stamp);
    if (age >= 0 && static_cast<std::uint64_t>(age) < use.idle_ms) use.idle_ms = static_cast<std::uint64_t>(age);
  }
  return use;
}

}  // namespace beluga
