#pragma once

#include <cstdint>

#include "hosts.hpp"

namespace beluga {

/// How recently a slot was used, and whether anybody leases it, read from every active host's stamps.
struct SlotUse {
  bool leased = false;
  std::uint64_t idle_ms = 0;  // since the newest use on any host
};

/// Has the stamps of a slot that other hosts write read from the device, at the next observe_fence.
template <class V, class Also>
void observe_stamps(const HostContext& context, std::uint64_t hosts, std::uint32_t slot, Also&& also) {
  for (std::uint64_t rest = hosts; rest; rest &= rest - 1) {
    const auto h = static_cast<std::uint32_t>(__builtin_ctzll(rest));
    if (h == context.host) continue;
    V::observe(Point::stamp, context.pool->stamp(h, slot), 4);
    also(h);
  }
}

/// Reads all stamps of a slot, and the clocks that they are told in, afresh: good for a choice, not for a verdict. A
/// reader may renew between the two. `born`: the owner's tick when the chunk was published, which counts as its first
/// use.
/// SYNC POINT: stamp (with Leases::hold)
template <class V>
SlotUse slot_use(HostContext& context, Hosts<V>& hosts, std::uint32_t slot, std::uint32_t born) {
  const PoolMemory& pool = *context.pool;
  const std::uint64_t active = context.active_hosts();
  observe_stamps<V>(context, active, slot, [&](std::uint32_t h) { hosts.observe_clock(h); });
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

/// The look that decides whether a closed chunk's slot may be used anew. The clocks are read before the stamps: a
/// reader that renews in between has a newer stamp then, and its clock has not passed the one that is read.
/// SYNC POINT: stamp (with Leases::hold)
template <class V>
bool leased_by_any(HostContext& context, Hosts<V>& hosts, std::uint32_t slot) {
  const PoolMemory& pool = *context.pool;
  const typename Hosts<V>::Clocks clocks = hosts.clocks();
  // Its fence also keeps the flush of the stamps behind the look at the clocks.
  hosts.refresh_active();
  const std::uint64_t active = context.active_hosts();
  observe_stamps<V>(context, active, slot, [](std::uint32_t) {});
  V::observe_fence(Point::stamp);
  for (std::uint64_t rest = active; rest; rest &= rest - 1) {
    const auto h = static_cast<std::uint32_t>(__builtin_ctzll(rest));
    const std::uint32_t stamp = V::load(pool.stamp(h, slot));
    if (stamp == 0) continue;
    if (!(clocks.hosts >> h & 1)) return true;  // it has joined since
    const typename Hosts<V>::Clock& clock = clocks.of[h];
    if (!clock.live || static_cast<std::int32_t>(stamp - clock.tick) <= 0) continue;
    if (stamp_is_live(stamp, clock.tick, context.sb().max_lease_ms)) return true;
    // Garbage, or told in a beat that came after the look at the clock. Whether it has run out since cannot be said.
    const std::uint32_t tick = hosts.clock_of(h).tick;
    if (static_cast<std::int32_t>(stamp - tick) <= 0 || stamp_is_live(stamp, tick, context.sb().max_lease_ms)) return true;
  }
  return false;
}

}  // namespace beluga
