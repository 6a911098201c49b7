#pragma once

#include <cstring>

#include "crc32c.hpp"
#include "host_context.hpp"
#include "visibility.hpp"

namespace beluga {

inline std::uint32_t identity_crc(const HostIdentity& identity) {
  return crc32c(0, {reinterpret_cast<const std::byte*>(&identity), 56});
}
/// What a damaged line says is no proof of anything.
inline bool intact(const HostIdentity& identity) { return identity.crc == identity_crc(identity); }

/// A host page's first line, freshly observed.
template <class V>
HostIdentity observe_identity(const PoolMemory& pool, std::uint32_t host) {
  const HostIdentity* line = &pool.host(host)->identity;
  V::observe(Point::identity, line, kLine);
  V::observe_fence(Point::identity);
  HostIdentity identity;
  load_words<V>(&identity, line, sizeof(identity));
  return identity;
}

/// Writes who this host is into its page.
/// SYNC POINT: identity (with observe_identity and Hosts::refresh_active on the other hosts)
template <class V>
void publish_identity(const HostContext& context, HostState state, std::uint64_t key_scheme) {
  HostIdentity identity{};
  identity.state = static_cast<std::uint32_t>(state);
  identity.incarnation = context.header().incarnation;
  identity.nonce = context.header().nonce;
  std::memcpy(identity.machine, context.header().machine, sizeof(identity.machine));
  identity.key_scheme = key_scheme;
  identity.epoch = context.sb().epoch;
  identity.joined_unix_ms = unix_ms();
  identity.crc = identity_crc(identity);
  HostIdentity* line = &context.pool->host(context.host)->identity;
  store_words<V>(line, &identity, sizeof(identity));
  V::confirm(Point::identity, line, kLine);
}

/// Does the page still name this host's processes?
template <class V>
bool identity_is_ours(const HostContext& context) {
  const HostIdentity identity = observe_identity<V>(*context.pool, context.host);
  return identity.nonce == context.header().nonce && identity.incarnation == context.header().incarnation;
}

enum class Page { ours, foreign, damaged };

/// Whose the page is. A foreign nonce means that another machine has taken the host id: whoever finds one stops for
/// ever. A line that makes no sense is damage, or somebody in the middle of writing it.
template <class V>
Page whose_page(const HostContext& context) {
  const HostIdentity identity = observe_identity<V>(*context.pool, context.host);
  if (!intact(identity)) return Page::damaged;
  return identity.nonce == context.header().nonce && identity.incarnation == context.header().incarnation
             ? Page::ours
             : Page::foreign;
}

/// Writes a damaged page's first line again.
template <class V>
void repair_identity(const HostContext& context) {
  const HostIdentity found = observe_identity<V>(*context.pool, context.host);
  // Where what is known of it has changed, the rest is believed; else nobody knows what the key scheme was.
  const bool known_changed = found.nonce != context.header().nonce ||
                             found.incarnation != context.header().incarnation ||
                             found.epoch != context.sb().epoch ||
                             found.state != static_cast<std::uint32_t>(HostState::member);
  publish_identity<V>(context, HostState::member, known_changed ? found.key_scheme : 0);
  context.count(Count::repaired);
}

}  // namespace beluga
