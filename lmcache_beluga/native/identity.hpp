#pragma once

#include <cstring>

#include "crc32c.hpp"
#include "host_context.hpp"
#include "visibility.hpp"

namespace beluga {

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
  read_machine_id(identity.machine);
  identity.key_scheme = key_scheme;
  identity.epoch = context.sb().epoch;
  identity.joined_unix_ms = unix_ms();
  identity.crc = crc32c(0, {reinterpret_cast<const std::byte*>(&identity), 56});
  HostIdentity* line = &context.pool->host(context.host)->identity;
  store_words<V>(line, &identity, sizeof(identity));
  V::confirm(Point::identity, line, kLine);
}

/// Does the page still name this host's processes? A foreign nonce means that another machine has taken the host
/// id: whoever finds one stops for ever.
template <class V>
bool identity_is_ours(const HostContext& context) {
  const HostIdentity* line = &context.pool->host(context.host)->identity;
  V::observe(Point::identity, line, kLine);
  V::observe_fence(Point::identity);
  return V::load(&line->nonce) == context.header().nonce && V::load(&line->incarnation) == context.header().incarnation;
}

}  // namespace beluga
