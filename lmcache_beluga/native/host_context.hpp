#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "clock.hpp"
#include "control_block.hpp"
#include "fork_guard.hpp"
#include "pool_memory.hpp"

namespace beluga {

/// How a process takes part in a pool. Times in milliseconds.
struct AttachOptions {
  std::uint32_t host_id = 0;
  std::string uuid;        // refuse any other pool; empty: any
  std::string key_scheme;  // how the caller hashes prompts; empty: do not check
  bool takeover = false;   // the operator has fenced the machine that had this host id
  std::uint32_t lease_ms = 10'000;
  std::uint32_t pin_timeout_ms = 300'000;
  std::uint32_t heartbeat_ms = 100;
  std::uint32_t dead_after_ms = 5'000;
  std::uint32_t lock_timeout_ms = 1'000;
  std::uint32_t open_timeout_ms = 30'000;
  std::uint32_t control_mode = 0600;
  int copy_threads = 0;
  bool prefault = false;
  bool verify = false;  // payload checksums: stored with what is written, compared with what is read
  std::string control_dir;  // empty: default_control_dir()
};

/// One process's place in a pool: what every protocol step needs to know.
struct HostContext {
  using Clock = std::uint64_t (*)() noexcept;

  HostContext(std::shared_ptr<PoolMemory> the_pool, std::shared_ptr<ControlBlock> the_control,
              const AttachOptions& the_options, std::uint32_t process_number, Clock the_clock = boot_ms)
      : pool(std::move(the_pool)),
        control(std::move(the_control)),
        options(the_options),
        host(the_options.host_id),
        process(process_number),
        clock(the_clock) {}

  const std::shared_ptr<PoolMemory> pool;
  const std::shared_ptr<ControlBlock> control;
  const AttachOptions options;
  const std::uint32_t host;
  const std::uint32_t process;  // process entry + 1: 1..32
  const Clock clock;
  const std::uint64_t forks = fork_generation();

  const Superblock& sb() const noexcept { return pool->sb(); }
  ControlHeader& header() const noexcept { return control->header(); }
  Counters& counters() const noexcept { return control->process(process - 1).counters; }
  void count(Count what, std::uint64_t n = 1) const noexcept { counters().add(what, n); }

  std::uint64_t now_ms() const noexcept { return clock(); }
  /// Can payload lie in the caches of CPUs? Then it is flushed before and after a transfer.
  bool payload_cached() const noexcept { return sb().payload_visibility == PayloadVisibility::flush; }
  /// This host's tick at a moment of now_ms(). 0 means none, so it is skipped.
  std::uint32_t tick_at(std::uint64_t ms) const noexcept {
    const auto tick = static_cast<std::uint32_t>(ms - header().tick_base);
    return tick ? tick : 1;
  }
  std::uint32_t tick() const noexcept { return tick_at(now_ms()); }
  /// The tick that the other hosts know of, or are about to: a stamp of it claims nothing in their eyes.
  std::uint32_t published_tick() const noexcept {
    return tick_at(__atomic_load_n(&header().last_beat, __ATOMIC_ACQUIRE));
  }
  /// Is this host's heartbeat so late that others may have judged it dead? Then no lease of it means anything.
  bool late() const noexcept {
    return now_ms() > __atomic_load_n(&header().last_beat, __ATOMIC_ACQUIRE) + options.dead_after_ms / 2;
  }
  /// Bit h: host h's lanes may hold something. Of this host, whichever of its processes found it out.
  std::uint64_t active_hosts() const noexcept { return __atomic_load_n(&header().active_hosts, __ATOMIC_ACQUIRE); }
  /// Is this slot's descriptor written by processes of this host alone? Then it is coherent here.
  bool owns(std::uint32_t slot) const noexcept { return control->extent(pool->extent_of(slot)).owned; }
  bool slot_in_range(std::uint32_t slot) const noexcept { return slot < pool->slot_limit(); }
};

/// Does a lease stamp claim the slot at this tick of the host that wrote it? A stamp far in the future is a
/// stale one from before a wrap, or garbage.
constexpr bool stamp_is_live(std::uint32_t stamp, std::uint32_t tick, std::uint32_t max_lease_ms) {
  if (stamp == 0) return false;
  const auto ahead = static_cast<std::int32_t>(stamp - tick);
  return ahead > 0 && ahead <= static_cast<std::int32_t>(max_lease_ms);
}

}  // namespace beluga
