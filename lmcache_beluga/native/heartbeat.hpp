#pragma once

#include <cstdint>

#include "hosts.hpp"
#include "identity.hpp"

namespace beluga {

/// This host's sign of life, and the fence that makes it honest.
///
/// Others may judge this host dead when its tick has stood still for dead_after, and then reuse what it leased. So a
/// beat that comes late first voids every earlier lease of the host, for good, and only then lets anybody hear of it.
/// Late is a gap of more than half of dead_after by the host's own clock, or by how far the tick of any other host
/// has moved meanwhile, since the clock of a virtual machine that was paused has stood still too.
template <class V>
class Heartbeat {
 public:
  Heartbeat(HostContext& context, Hosts<V>& hosts) : context_(context), hosts_(hosts) {}

  /// One beat, as of `now`: no later than the caller's last look at whether the pool and the host page are still its
  /// own, so that whoever is not late has looked. Of several processes of a host that beat at once, one publishes.
  /// Returns whether it was this one.
  bool beat(std::uint64_t now, std::uint32_t pressure, std::uint32_t coldest_age_ms) {
    ControlHeader& header = context_.header();
    const std::uint64_t last = V::load(&header.last_beat);
    std::uint32_t ticks[kMaxHosts];
    const std::uint64_t peers = read_peers(ticks);
    if ((now > last + limit() || peers_moved(peers, ticks)) && V::on(Point::lease_epoch, Step::check)) {
      const std::uint64_t epoch = V::load(&header.lease_epoch);
      V::exchange_if(&header.lease_epoch, epoch, epoch + 1);
    }
    for (std::uint64_t rest = peers; rest; rest &= rest - 1) {
      const auto h = static_cast<std::uint32_t>(__builtin_ctzll(rest));
      V::store(&header.peer_ticks[h], ticks[h]);
    }
    if (!publish(now, pressure, coldest_age_ms)) return false;
    // Only now: whoever finds the beat in time has leases that every other host respects.
    if (last < now) V::exchange_if(&header.last_beat, last, now);
    return true;
  }

  bool beat(std::uint32_t pressure, std::uint32_t coldest_age_ms) {
    return beat(context_.now_ms(), pressure, coldest_age_ms);
  }

  /// Tells the others, at an orderly end of the host's last process, that nobody beats here any more, or can use what
  /// they would evict for it: until dead_after, it is taken for alive.
  void leave() {
    HostHeartbeat& beat = context_.pool->host(context_.host)->heartbeat;
    V::store(&beat.pressure, std::uint32_t{0});
    V::store(&beat.left, std::uint32_t{1});
    V::confirm(Point::heartbeat, &beat, kLine);
  }

 private:
  std::uint64_t limit() const { return context_.options.dead_after_ms / 2; }

  std::uint64_t read_peers(std::uint32_t (&ticks)[kMaxHosts]) {
    const std::uint64_t peers = context_.active_hosts() & ~(std::uint64_t{1} << context_.host);
    if (peers == 0) return 0;
    for (std::uint64_t rest = peers; rest; rest &= rest - 1) {
      hosts_.observe_clock(static_cast<std::uint32_t>(__builtin_ctzll(rest)));
    }
    V::observe_fence(Point::heartbeat);
    for (std::uint64_t rest = peers; rest; rest &= rest - 1) {
      const auto h = static_cast<std::uint32_t>(__builtin_ctzll(rest));
      ticks[h] = V::load(&context_.pool->host(h)->heartbeat.tick);
    }
    return peers;
  }

  /// Has some host's clock gone on for so long since the last beat that it may have judged this one dead?
  bool peers_moved(std::uint64_t peers, const std::uint32_t (&ticks)[kMaxHosts]) const {
    for (std::uint64_t rest = peers; rest; rest &= rest - 1) {
      const auto h = static_cast<std::uint32_t>(__builtin_ctzll(rest));
      const std::uint32_t before = V::load(&context_.header().peer_ticks[h]);
      if (before != 0 && ticks[h] - before > limit()) return true;
    }
    return false;
  }

  /// False if another process of this host has published this tick or a later one: one that was stopped here must not
  /// turn the clock back, or stamps would look as if they came from the future.
  /// SYNC POINT: heartbeat (with Hosts::judge on the other hosts)
  bool publish(std::uint64_t now, std::uint32_t pressure, std::uint32_t coldest_age_ms) {
    HostHeartbeat& beat = context_.pool->host(context_.host)->heartbeat;
    const std::uint32_t seen = V::load(&beat.tick);
    const std::uint32_t tick = context_.tick_at(now);
    if (static_cast<std::int32_t>(tick - seen) <= 0) return false;
    V::store(&beat.incarnation, context_.header().incarnation);
    V::store(&beat.epoch, context_.sb().epoch);
    V::store(&beat.active_hosts, context_.active_hosts());
    V::store(&beat.dead_after_ms, context_.options.dead_after_ms);
    V::store(&beat.pressure, pressure);
    V::store(&beat.coldest_age_ms, coldest_age_ms);
    V::store(&beat.left, std::uint32_t{0});
    if (!V::exchange_if(&beat.tick, seen, tick)) return false;
    V::confirm(Point::heartbeat, &beat, kLine);
    return true;
  }

  HostContext& context_;
  Hosts<V>& hosts_;
};

}  // namespace beluga
