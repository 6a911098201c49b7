#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "host_context.hpp"
#include "visibility.hpp"

namespace beluga {

/// What this process knows of the other hosts: who takes part, who is alive, and what their clocks say.
///
/// No clocks are compared. A host is dead only if its {incarnation, tick}, read afresh, equals a value this
/// process first saw at least dead_after ago.
template <class V>
class Hosts {
 public:
  explicit Hosts(HostContext& context) : context_(context) {}

  /// Finds out which hosts' lanes may hold anything.
  void refresh_active() {
    const PoolMemory& pool = *context_.pool;
    std::uint64_t active = std::uint64_t{1} << context_.host;
    for (std::uint32_t h = 0; h < pool.sb().max_hosts; ++h) {
      if (h == context_.host) continue;
      V::observe(&pool.host(h)->identity, kLine);
    }
    V::observe_fence();
    for (std::uint32_t h = 0; h < pool.sb().max_hosts; ++h) {
      if (h != context_.host && V::load(&pool.host(h)->identity.state) != 0) active |= std::uint64_t{1} << h;
    }
    context_.active_hosts.store(active, std::memory_order_release);
  }

  /// Hardware-coherent hosts see a joiner at once, before its first commit.
  void refresh_if_shared() {
    if constexpr (V::mode == VisibilityMode::coherent) {
      if (context_.sb().max_hosts > 1) refresh_active();
    }
  }

  struct Clock {
    std::uint32_t tick = 0;
    bool live = false;
  };

  /// A host's tick, freshly observed. For a dead host the time since its last sign of life is added, so that
  /// its chunks grow old too.
  Clock clock_of(std::uint32_t h) {
    if (h == context_.host) return {context_.tick(), true};
    const HostHeartbeat& beat = context_.pool->host(h)->heartbeat;
    V::observe(&beat, kLine);
    V::observe_fence();
    const std::uint64_t now = boot_ms();
    const std::uint64_t seen = std::uint64_t{V::load(&beat.incarnation)} << 32 | V::load(&beat.tick);
    Sight& sight = sights_[h];
    if (sight.value.load(std::memory_order_acquire) != seen || sight.since.load(std::memory_order_acquire) == 0) {
      sight.since.store(now, std::memory_order_release);
      sight.value.store(seen, std::memory_order_release);
    }
    const std::uint64_t age = now - sight.since.load(std::memory_order_acquire);
    Clock clock;
    clock.live = age < context_.options.dead_after_ms;
    clock.tick = static_cast<std::uint32_t>(seen) + static_cast<std::uint32_t>(clock.live ? 0 : age);
    return clock;
  }

 private:
  struct Sight {
    std::atomic<std::uint64_t> value{0};
    std::atomic<std::uint64_t> since{0};  // boot_ms at which `value` was first seen
  };

  HostContext& context_;
  std::array<Sight, kMaxHosts> sights_;
};

}  // namespace beluga
