#pragma once

#include <cstdint>
#include <cstring>
#include <string>

#include "errors.hpp"
#include "hosts.hpp"
#include "identity.hpp"

namespace beluga {

/// How the first process of a host comes to its host page.
template <class V>
class Joining {
 public:
  Joining(HostContext& context, Hosts<V>& hosts) : context_(context), hosts_(hosts), pool_(*context.pool) {}

  /// Takes the host page, with a new incarnation and the control block's nonce. `certain`: nobody else can have this
  /// host id, because a lock says so, or because the page still has the nonce that this host's control block had.
  ///
  /// Otherwise two machines, or two containers that do not share /dev/shm, may want it at once. Whoever beats is
  /// left alone: watched for dead_after, unless he has left in order. A page that was another machine's before, or
  /// nobody's, is then elected for: each writes its nonce, confirms it, and goes on only if it is still there
  /// dead_after later. Throws host_in_use. Returns whether this host was a member already.
  bool take(bool certain, std::uint64_t key_scheme) {
    const HostIdentity before = observe_identity<V>(pool_, context_.host);
    if (!certain && before.state == static_cast<std::uint32_t>(HostState::member)) {
      if (beats()) throw_in_use("beats");
      certain = intact(before) && std::memcmp(before.machine, context_.header().machine, sizeof(before.machine)) == 0;
    }
    if (key_scheme == 0 && intact(before)) key_scheme = before.key_scheme;  // of the chunks that are here already
    // A host whose join was cut short has to wait again: only a member's lanes are read by everybody.
    const bool known =
        V::mode == VisibilityMode::coherent || before.state == static_cast<std::uint32_t>(HostState::member);
    context_.header().incarnation = before.incarnation + 1;
    publish_identity<V>(context_, known ? HostState::member : HostState::joining, key_scheme);
    if (!certain) {
      wait(context_.options.dead_after_ms, [] { return false; });
      if (V::on(Point::identity, Step::check) && !identity_is_ours<V>(context_)) throw_in_use("was taken meanwhile");
    }
    hosts_.refresh_active();
    if (!known) {
      await_readers();
      publish_identity<V>(context_, HostState::member, key_scheme);
    }
    return before.state == static_cast<std::uint32_t>(HostState::member);
  }

 private:
  static constexpr std::uint32_t kPollMs = 5;

  template <class Done>
  bool wait(std::uint32_t at_most_ms, Done&& done) {
    const std::uint64_t until = context_.now_ms() + at_most_ms;
    while (context_.now_ms() < until) {
      if (done()) return true;
      V::sleep_us(kPollMs * 1000);
    }
    return done();
  }

  std::uint64_t beat_of(std::uint32_t h) const {
    const HostHeartbeat& beat = pool_.host(h)->heartbeat;
    V::observe(Point::heartbeat, &beat, kLine);
    V::observe_fence(Point::heartbeat);
    return std::uint64_t{V::load(&beat.incarnation)} << 32 | V::load(&beat.tick);
  }

  bool beats() {
    if (V::load(&pool_.host(context_.host)->heartbeat.left)) return false;
    const std::uint64_t before = beat_of(context_.host);
    return wait(context_.options.dead_after_ms, [&] { return beat_of(context_.host) != before; });
  }

  /// A chunk in a lane that nobody reads is no chunk: what this host commits must be found by everybody. The live say
  /// in their heartbeats whose lanes they read; whoever is silent for dead_after looks afresh before his next lookup.
  void await_readers() {
    std::uint64_t waited_for = context_.active_hosts() & ~(std::uint64_t{1} << context_.host);
    wait(context_.options.dead_after_ms, [&] {
      for (std::uint64_t rest = waited_for; rest; rest &= rest - 1) {
        const auto h = static_cast<std::uint32_t>(__builtin_ctzll(rest));
        beat_of(h);
        if (V::load(&pool_.host(h)->heartbeat.active_hosts) >> context_.host & 1) {
          waited_for &= ~(std::uint64_t{1} << h);
        }
      }
      return waited_for == 0;
    });
  }

  [[noreturn]] void throw_in_use(const char* why) const {
    throw Error(ErrorKind::host_in_use,
                "host id " + std::to_string(context_.host) + " of this pool " + why +
                    ": give every machine its own beluga.host_id, and let the containers of one machine share /dev/shm "
                    "(docker: --ipc=host)");
  }

  HostContext& context_;
  Hosts<V>& hosts_;
  const PoolMemory& pool_;
};

}  // namespace beluga
