#include "pool_core.hpp"

#include <cstring>

#include "cache_instructions.hpp"
#include "errors.hpp"
#include "format.hpp"
#include "membership.hpp"
#include "store.hpp"

namespace beluga {
namespace {

void check_options(const PoolMemory& pool, const AttachOptions& options) {
  const Superblock& sb = pool.sb();
  if (options.host_id >= sb.max_hosts) {
    throw Error(ErrorKind::invalid_argument, "host id " + std::to_string(options.host_id) +
                                                 " does not exist in a pool formatted for " +
                                                 std::to_string(sb.max_hosts) +
                                                 " host(s): lower beluga.host_id, or format with a larger --max-hosts");
  }
  if (!options.uuid.empty() && options.uuid != uuid_text(sb.uuid)) {
    throw Error(ErrorKind::pool_uuid, pool.devices()[0]->file().path() + " holds pool " + uuid_text(sb.uuid) +
                                          ", beluga.uuid asks for " + options.uuid);
  }
  const auto within = [](const char* name, std::uint32_t value, std::uint32_t low, std::uint32_t high) {
    if (value < low || value > high) {
      throw Error(ErrorKind::invalid_argument, std::string(name) + " must be " + std::to_string(low) + " to " +
                                                   std::to_string(high) + " ms, not " + std::to_string(value));
    }
  };
  within("beluga.heartbeat", options.heartbeat_ms, 1, 60'000);
  within("beluga.dead_after", options.dead_after_ms, options.heartbeat_ms * 4, 3'600'000);
  // Room to renew at half time, and for stamps that several processes raise past it.
  within("beluga.lease", options.lease_ms, options.heartbeat_ms * 4, sb.max_lease_ms / 2);
}

void check_scheme(const PoolMemory& pool, const AttachOptions& options, std::uint64_t print) {
  if (options.key_scheme.empty()) return;
  const std::string path = pool.devices()[0]->file().path();
  const std::string fix =
      ". Chunks of one would never be found by the other. Give every process the same PYTHONHASHSEED, "
      "pre_caching_hash_algorithm and chunk_size, or format the pool anew, or use another";
  const std::string formatted = pool.sb().key_scheme;
  if (!formatted.empty()) {
    if (formatted == options.key_scheme) return;
    throw Error(ErrorKind::key_scheme, path + " holds chunks hashed as '" + formatted + "', this process hashes as '" +
                                           options.key_scheme + "'" + fix);
  }
  for (std::uint32_t h = 0; h < pool.sb().max_hosts; ++h) {
    const HostIdentity identity = observe_identity<Noncoherent<CacheMachine>>(pool, h);
    const std::uint64_t theirs = identity.key_scheme;
    if (identity.state != static_cast<std::uint32_t>(HostState::member) || theirs == 0 || theirs == print) continue;
    if (!intact(identity)) continue;
    throw Error(ErrorKind::key_scheme, path + " holds chunks of host " + std::to_string(h) +
                                           " that were hashed in another way; this process hashes as '" +
                                           options.key_scheme + "'" + fix);
  }
}

}  // namespace

std::shared_ptr<PoolCore> attach_pool(std::shared_ptr<PoolMemory> pool, const AttachOptions& options) {
  check_options(*pool, options);
  const bool coherent = pool->sb().visibility == VisibilityMode::coherent;
  if (const char* why = why_not_noncoherent(); !coherent && *why) {
    throw Error(ErrorKind::unsupported, pool->devices()[0]->file().path() +
                                            " was formatted with visibility=noncoherent, and this machine cannot take "
                                            "part: " + why);
  }
  const std::uint64_t scheme =
      options.key_scheme.empty() ? 0 : checksum64(std::as_bytes(std::span(options.key_scheme))) | 1;
  Membership member = join_host(*pool, options);
  // Under the initialisation lock: of two processes that start at once, the second sees the first's scheme.
  check_scheme(*pool, options, scheme);
  if (options.prefault) {
    for (std::uint32_t e = 0; e < pool->sb().extents; ++e) pool->reserve_payload(e, 0, pool->sb().extent_size);
  }
  // In a forked child the handle is left alone for ever: its heartbeat does not exist there, and to destroy the
  // condition variable on which it waits would wait for it.
  const std::uint64_t forks = fork_generation();
  PoolCore* store = nullptr;
  if (coherent) {
    store = new Store<Coherent>(pool, std::move(member), options, scheme);
  } else {
    store = new Store<Noncoherent<CacheMachine>>(pool, std::move(member), options, scheme);
  }
  return {store, [forks](const PoolCore* handle) {
            if (forks == fork_generation()) delete handle;
          }};
}

}  // namespace beluga
