#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "counters.hpp"
#include "pool_memory.hpp"
#include "visibility.hpp"

namespace beluga {

/// What a host's page says of it, for people to look at.
struct HostView {
  std::uint32_t id = 0;
  std::uint32_t state = 0;  // HostState
  std::uint32_t incarnation = 0;
  std::uint32_t tick = 0;
  std::uint32_t processes = 0;
  std::uint32_t extents = 0;         // that it owns
  std::uint32_t pressure = 0;        // extents that it could use and cannot have
  std::uint32_t coldest_age_ms = 0;  // of the chunk that it would evict next
  std::uint32_t dead_after_ms = 0;   // by which it fences itself
  bool left = false;                 // its last process has ended in order, and none has come since
  bool live = false;                 // beats, as far as the observer can tell
  bool attached = false;             // some process of this machine holds the lock of the host id
  bool self = false;
  std::uint64_t silent_ms = 0;  // since the observer last saw its tick move, or first looked
  std::string name;
  std::vector<std::uint64_t> counters;  // as published, by Count
};

/// Reads a host page afresh, all but what only time can tell: `live` and `silent_ms`.
template <class V>
HostView read_host_page(const PoolMemory& pool, std::uint32_t h) {
  const HostPage& page = *pool.host(h);
  const std::uint32_t extents = pool.sb().extents;
  V::observe(Point::statistics, &page, sizeof(page));
  V::observe(Point::claim, pool.claims(h), extents);
  V::observe_fence(Point::statistics);
  HostView view;
  view.id = h;
  view.state = V::load(&page.identity.state);
  view.incarnation = V::load(&page.identity.incarnation);
  view.tick = V::load(&page.heartbeat.tick);
  view.processes = V::load(&page.heartbeat.processes);
  view.pressure = V::load(&page.heartbeat.pressure);
  view.coldest_age_ms = V::load(&page.heartbeat.coldest_age_ms);
  view.dead_after_ms = V::load(&page.heartbeat.dead_after_ms);
  view.left = V::load(&page.heartbeat.left) != 0;
  char name[sizeof(page.name)];
  load_words<V>(name, page.name, sizeof(name));
  view.name.assign(name, strnlen(name, sizeof(name)));
  view.counters.resize(kCounts);
  for (std::size_t c = 0; c < kCounts; ++c) view.counters[c] = V::load(&page.counters[c]);
  for (std::uint32_t e = 0; e < extents; ++e) {
    view.extents += V::load(pool.claims(h) + e) == static_cast<std::uint8_t>(Claim::owned);
  }
  return view;
}

/// The hosts of a pool, seen by somebody who is none of them. Watches until every member has beaten, or has been
/// silent for its own dead_after: at most `most_ms`.
std::vector<HostView> watch_hosts(const PoolMemory& pool, std::uint32_t most_ms);

}  // namespace beluga
