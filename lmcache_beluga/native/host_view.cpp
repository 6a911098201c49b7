#include "host_view.hpp"

#include <algorithm>
#include <chrono>
#include <thread>

#include "cache_instructions.hpp"
#include "clock.hpp"
#include "format.hpp"
#include "range_lock.hpp"

namespace beluga {
namespace {

/// Right in either mode.
using Careful = Noncoherent<CacheMachine>;

std::uint64_t beat_of(const PoolMemory& pool, std::uint32_t h) {
  const HostHeartbeat& beat = pool.host(h)->heartbeat;
  Careful::observe(Point::heartbeat, &beat, kLine);
  Careful::observe_fence(Point::heartbeat);
  return std::uint64_t{Careful::load(&beat.incarnation)} << 32 | Careful::load(&beat.tick);
}

bool may_beat(const HostView& view) {
  return view.state != static_cast<std::uint32_t>(HostState::retired) && !view.left;
}

}  // namespace

std::vector<HostView> watch_hosts(const PoolMemory& pool, std::uint32_t most_ms) {
  constexpr std::uint32_t kPollMs = 5;
  struct Watched {
    HostView view;
    std::uint64_t beat = 0;
  };
  std::vector<Watched> hosts;
  for (std::uint32_t h = 0; h < pool.sb().max_hosts; ++h) {
    HostView view = read_host_page<Careful>(pool, h);
    if (view.state == static_cast<std::uint32_t>(HostState::never)) continue;
    hosts.push_back({std::move(view), beat_of(pool, h)});
  }
  const std::uint64_t start = boot_ms();
  bool wait = true;
  while (wait) {
    const std::uint64_t waited = boot_ms() - start;
    wait = false;
    for (Watched& host : hosts) {
      if (host.view.live || !may_beat(host.view)) continue;
      if (beat_of(pool, host.view.id) != host.beat) {
        host.view.live = true;
        continue;
      }
      host.view.silent_ms = waited;
      wait |= waited < std::min(host.view.dead_after_ms, most_ms);
    }
    if (wait) std::this_thread::sleep_for(std::chrono::milliseconds(kPollMs));
  }
  std::vector<HostView> views;
  for (Watched& host : hosts) {
    const bool live = host.view.live;
    const std::uint64_t silent = host.view.silent_ms;
    // As it is now: a page that was read before its host's first beat tells little.
    host.view = read_host_page<Careful>(pool, host.view.id);
    host.view.live = live;
    host.view.silent_ms = live ? 0 : silent;
    host.view.attached = held_by_other(pool.lock_fd(), kAttachLockByte + host.view.id);
    views.push_back(std::move(host.view));
  }
  return views;
}

}  // namespace beluga
