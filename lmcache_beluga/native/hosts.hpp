#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <mutex>

#include "host_context.hpp"
#include "visibility.hpp"

namespace beluga {

/// What this process knows of the other hosts: who takes part, who is alive, and what their clocks say.
///
/// No clocks are compared. A host is dead only if its {incarnation, tick}, read afresh, equals a value that this
/// process first saw more than dead_after ago: its own dead_after, or the one that the host itself fences by,
/// whichever is longer. "Ago" ends at this host's last confirmed heartbeat. That is what makes the fence of a host
/// whose clock stood still work (Heartbeat::peers_moved): before the beat that was its last, it read this host's
/// tick; no later beat of it has read one that is more than half of dead_after newer without voiding its leases;
/// so the first that it reads when it wakes is newer by more than that.
template <class V>
class Hosts {
 public:
  explicit Hosts(HostContext& context) : context_(context) {}

  /// Finds out which hosts' lanes may hold anything.
  /// SYNC POINT: identity (with Joining, which waits until everybody has been here)
  void refresh_active() {
    const PoolMemory& pool = *context_.pool;
    const std::uint64_t since = context_.now_ms();
    std::uint64_t active = std::uint64_t{1} << context_.host;
    for (std::uint32_t h = 0; h < pool.sb().max_hosts; ++h) {
      if (h != context_.host) V::observe(Point::identity, &pool.host(h)->identity, kLine);
    }
    V::observe_fence(Point::identity);
    for (std::uint32_t h = 0; h < pool.sb().max_hosts; ++h) {
      if (h == context_.host) continue;
      if (takes_part(V::load(&pool.host(h)->identity.state))) active |= std::uint64_t{1} << h;
    }
    // Other processes of this host may be here too: bits are only added, so that the older of two findings takes
    // nothing away. The lanes of a host that has left are empty; to read them costs time alone.
    ControlHeader& header = context_.header();
    V::fetch_or(&header.active_hosts, active);
    const std::uint64_t before = V::load(&header.active_since);
    if (before < since) V::exchange_if(&header.active_since, before, since);
  }

  /// Called before each look at the index. Hardware-coherent hosts see a joiner at once; elsewhere a joiner waits
  /// until the live have seen it, and whoever was away for so long that it did not wait for him looks first.
  void keep_active_fresh() {
    if (context_.sb().max_hosts == 1) return;
    if constexpr (V::mode == VisibilityMode::noncoherent) {
      const std::uint64_t age = context_.now_ms() - V::load(&context_.header().active_since);
      if (age < context_.options.dead_after_ms / 2 || !V::on(Point::identity, Step::check)) return;
    }
    refresh_active();
  }

  struct Clock {
    std::uint32_t tick = 0;
    bool live = false;
    std::uint64_t silent_ms = 0;  // from when it was last seen to move, or first seen, to this host's last heartbeat
  };

  /// What the clocks of all active hosts said at one moment. A host that became active later is not among them.
  struct Clocks {
    std::uint64_t hosts = 0;  // a bit for each
    std::array<Clock, kMaxHosts> of;
  };

  /// Freshly observed.
  Clocks clocks() {
    Clocks all;
    all.hosts = context_.active_hosts();
    for (std::uint64_t rest = all.hosts; rest; rest &= rest - 1) {
      observe_clock(static_cast<std::uint32_t>(__builtin_ctzll(rest)));
    }
    V::observe_fence(Point::heartbeat);
    for (std::uint64_t rest = all.hosts; rest; rest &= rest - 1) {
      const auto h = static_cast<std::uint32_t>(__builtin_ctzll(rest));
      all.of[h] = judge(h);
    }
    return all;
  }

  /// A host's tick, freshly observed. For a dead host the time since its last sign of life is added, so that
  /// its chunks grow old too.
  Clock clock_of(std::uint32_t h) {
    if (h == context_.host) return {context_.tick(), true, 0};
    observe_clock(h);
    V::observe_fence(Point::heartbeat);
    return judge(h);
  }

  /// The same in two halves, for batches: observe_clock, observe_fence, judge.
  /// SYNC POINT: heartbeat (with Heartbeat::publish on the other hosts)
  void observe_clock(std::uint32_t h) {
    if (h != context_.host) V::observe(Point::heartbeat, &context_.pool->host(h)->heartbeat, kLine);
  }
  Clock judge(std::uint32_t h) {
    if (h == context_.host) return {context_.tick(), true, 0};
    const HostHeartbeat& beat = context_.pool->host(h)->heartbeat;
    const std::uint64_t looked = V::load(&context_.header().last_beat);
    const std::uint64_t seen = std::uint64_t{V::load(&beat.incarnation)} << 32 | V::load(&beat.tick);
    const std::uint64_t patience = std::max(context_.options.dead_after_ms, V::load(&beat.dead_after_ms));
    const std::uint64_t since = first_seen(h, seen);
    const std::uint64_t age = looked > since ? looked - since : 0;
    Clock clock;
    clock.silent_ms = age;
    clock.live = age <= std::min<std::uint64_t>(patience, kLongestPatienceMs);
    clock.tick = static_cast<std::uint32_t>(seen) + static_cast<std::uint32_t>(clock.live ? 0 : age);
    return clock;
  }

  /// Every host is judged by what is seen of it from now on.
  void forget_sights() {
    const std::lock_guard guard(mutex_);
    sights_ = {};
  }

 private:
  static constexpr std::uint64_t kLongestPatienceMs = 3'600'000;

  static bool takes_part(std::uint32_t state) {
    return state != static_cast<std::uint32_t>(HostState::never) &&
           state != static_cast<std::uint32_t>(HostState::retired);
  }

  /// When this process first saw that value, as far as it remembers: after the look, not before it.
  std::uint64_t first_seen(std::uint32_t h, std::uint64_t value) {
    const std::lock_guard guard(mutex_);
    Sight& sight = sights_[h];
    if (sight.since == 0 || sight.value != value) sight = {value, context_.now_ms()};
    return sight.since;
  }

  struct Sight {
    std::uint64_t value = 0;
    std::uint64_t since = 0;  // now_ms; 0: never
  };

  HostContext& context_;
  typename V::Mutex mutex_;
  std::array<Sight, kMaxHosts> sights_;  // guarded by mutex_
};

}  // namespace beluga
