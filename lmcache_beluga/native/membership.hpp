#pragma once

#include <memory>
#include <optional>

#include "host_context.hpp"
#include "range_lock.hpp"

namespace beluga {

/// This process's membership in a host: the locks that say it is alive, its process entry, and whether it is
/// the host's first process, which has to recover.
///
/// Given up before its recovery has finished, a first process takes the control block that it began along.
struct Membership {
  Membership() = default;
  Membership(Membership&&) noexcept = default;
  Membership& operator=(Membership&&) noexcept = default;
  ~Membership();

  std::shared_ptr<ControlBlock> control;
  RangeLock attached;      // shared, on the pool: this host id is in use on this machine
  RangeLock initialising;  // exclusive, on the control block, until recovery has finished
  RangeLock alive;         // exclusive, on the process entry's byte
  std::uint32_t process = 0;
  bool first = false;
  std::uint64_t former_nonce = 0;  // of the host's earlier processes, if this control block was theirs
};

/// Finds or makes the host's control block and takes a process entry. Throws host_in_use, key_scheme, pool_busy
/// (an attach that hangs, or no free process entry), and what ControlBlock throws.
Membership join_host(const PoolMemory& pool, const AttachOptions& options);

/// Has the process of this entry, whose lock is free, really ended? Robust locks and file locks are released
/// before a GPU is closed, so DMA may go on until the pidfd says that the process is gone. Where its pid cannot
/// be seen (another pid namespace) a quarantine of dead_after has to do. One that lent what it held has ended when
/// its borrowers have had their time.
bool process_has_ended(ProcessEntry& entry, std::uint32_t dead_after_ms);

/// Fills an entry with this process.
void describe_process(ProcessEntry& entry);

}  // namespace beluga
