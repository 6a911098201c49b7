#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "counters.hpp"
#include "layout.hpp"
#include "mapping.hpp"
#include "pool_memory.hpp"
#include "robust_mutex.hpp"

namespace beluga {

inline constexpr std::uint32_t kMaxProcesses = 32;

/// Lock bytes of a control block.
inline constexpr std::uint64_t kInitLockByte = 0;
inline constexpr std::uint64_t kProcessLockByte = 16;  // + process entry

/// What the processes of one host share in local DRAM: never in the pool, since only they may see it.
///
/// Everything here can be rebuilt from the pool. It is bound to pool uuid, epoch and boot, and discarded when
/// one of them differs or when no process of the host is alive.
///
///      0 +---------------------------+
///        | header (one page)         |
///   4096 +---------------------------+
///        | processes: 32 x 512       |  who is alive, what it counted
///        +---------------------------+
///        | extents: 64 each          |  how an own extent is cut, what is free
///        +---------------------------+
///        | free map: a bit per slot  |  1: free
///        +---------------------------+
///        | slots: 16 each            |  who leases it, whether caches are clear of its past
///        +---------------------------+
///        | writers: a byte per slot  |  which process has reserved it
///        +---------------------------+
struct ControlHeader {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t ready;  // 1 once recovery has finished
  std::uint8_t uuid[16];
  std::uint64_t epoch;
  std::uint8_t boot_id[16];
  std::uint8_t machine[16];
  std::uint64_t nonce;
  std::uint32_t incarnation;
  std::uint32_t host;
  std::uint64_t bytes;
  std::uint64_t tick_base;     // now_ms of tick 0
  std::uint64_t last_beat;     // now_ms of the last heartbeat that is known to have reached the device
  std::uint64_t lease_epoch;   // raised by a late heartbeat: voids every earlier lease
  std::uint64_t active_hosts;  // whose lanes lookups have to read: bit h
  std::uint64_t active_since;  // now_ms at which active_hosts began to be found out
  std::uint64_t scrub_cursor;
  std::uint64_t cuts;   // +1 whenever an extent is claimed, cut anew or released
  /// The slot whose descriptor and free bit are being changed, + 1: what a dead holder of `slots` left undone.
  std::uint32_t intent;
  std::uint32_t reserved;
  RobustMutex slots;   // free map, extents, claims
  std::uint64_t shortage_bytes;  // evicted for want of an extent since the last heartbeat
  std::uint64_t demand;          // for extents, and as of when: see Pressure::Demand
  Counters departed;  // what the processes that are gone had counted
  std::uint32_t peer_ticks[kMaxHosts];  // what the last heartbeat saw of the others
};
static_assert(sizeof(ControlHeader) <= 4096);

struct alignas(kLine) ProcessEntry {
  std::uint32_t state;  // 0 unused, 1 in use
  std::uint32_t pid;
  std::uint64_t started;  // field 22 of /proc/PID/stat: a reused pid does not match
  std::uint64_t pid_namespace;
  std::uint64_t died;  // boot_ms at which its death was first seen without a pidfd to confirm it; 0: not yet
  std::uint32_t holds_pages;  // 1: a GPU reaches the pool's pages by their physical addresses, which must stay
  std::uint32_t drops_pages;  // how many threads look at holds_pages, or give pages back, right now
  std::uint32_t lends_ms;     // how long others may go on using its slots and leases when it is gone; 0: nobody does
  std::uint8_t zeros[20];
  Counters counters;
};
static_assert(sizeof(ProcessEntry) == 512);

/// A number that is changed under a lock and also read without it, one value at a time.
template <class T>
struct Cell {
  T value{};

  operator T() const noexcept { return __atomic_load_n(&value, __ATOMIC_ACQUIRE); }
  Cell& operator=(T now) noexcept {
    __atomic_store_n(&value, now, __ATOMIC_RELEASE);
    return *this;
  }
  Cell& operator=(const Cell& other) noexcept { return *this = static_cast<T>(other); }
};

/// How one own extent is cut. Changed under ControlHeader::slots.
struct alignas(kLine) ExtentControl {
  Cell<std::uint64_t> slot_size;
  Cell<std::uint64_t> reserved_bytes;  // of payload that has storage behind it
  Cell<std::uint32_t> slots;
  Cell<std::uint32_t> free;
  Cell<std::uint32_t> hint;  // word of the free map to search first
  Cell<std::uint8_t> owned;
  Cell<std::uint8_t> draining;   // by which process it is being emptied for another slot size; nothing is allocated
  Cell<std::uint8_t> full_disk;  // the file system refused more storage; cleared when space comes back
  std::uint8_t zeros[29];
};
static_assert(sizeof(ExtentControl) == kLine);

/// What this host keeps of a slot, on whichever host's extent it lies.
struct SlotControl {
  std::uint64_t leases;  // bit p: process p leases it; bit 32 + p: p, the last to leave, is lowering the stamp
  std::uint64_t fresh;   // see fresh_generation()
};
static_assert(sizeof(SlotControl) == 16);

class ControlBlock {
 public:
  /// Opens or creates the control block file at `path` for this pool and host; the contents are whatever they
  /// are. Throws pool_permission, no_space, pool_io, pool_missing (no such directory).
  ControlBlock(const std::string& path, const PoolMemory& pool, std::uint32_t mode);

  const std::string& path() const noexcept { return path_; }
  int fd() const noexcept { return mapping_->file().fd(); }
  bool faulted() const noexcept { return mapping_->faulted(); }
  /// Is the file at path() still this one? The last process to leave removes it.
  bool linked() const noexcept;

  std::uint64_t bytes() const noexcept { return bytes_; }
  ControlHeader& header() const noexcept { return *at<ControlHeader>(0); }
  ProcessEntry& process(std::uint32_t p) const noexcept { return at<ProcessEntry>(4096)[p]; }
  ExtentControl& extent(std::uint32_t e) const noexcept { return at<ExtentControl>(extents_at_)[e]; }
  /// The free map of extent `e`: map_words() words.
  std::uint64_t* free_map(std::uint32_t e) const noexcept {
    return at<std::uint64_t>(map_at_) + std::uint64_t{e} * map_words_;
  }
  std::uint32_t map_words() const noexcept { return map_words_; }
  std::uint64_t* lease_mask(std::uint32_t slot) const noexcept { return &at<SlotControl>(slots_at_)[slot].leases; }
  /// Generation + 1 of the chunk of which no cache of this host holds an older payload line; 0: not known.
  std::uint64_t* fresh_generation(std::uint32_t slot) const noexcept {
    return &at<SlotControl>(slots_at_)[slot].fresh;
  }
  /// The process that has reserved an own slot and not published it yet; 0: none. The descriptor says so too, and may
  /// be damaged.
  std::uint8_t* writer(std::uint32_t slot) const noexcept { return at<std::uint8_t>(writers_at_) + slot; }
  /// Gives what is kept of slots [first, first + count) storage; throws no_space.
  void reserve_slots(std::uint32_t first, std::uint32_t count) const;

  /// Does the header belong to this pool, epoch and boot, and did its recovery finish?
  bool matches(const PoolMemory& pool, std::uint32_t host) const noexcept;
  /// Zeroes everything and writes a header that is not ready yet. Only under kInitLockByte.
  void reset(const PoolMemory& pool, std::uint32_t host) const;

 private:
  template <class T>
  T* at(std::uint64_t offset) const noexcept {
    return reinterpret_cast<T*>(mapping_->base() + offset);
  }

  std::string path_;
  std::shared_ptr<Mapping> mapping_;
  std::uint64_t extents_at_;
  std::uint64_t map_at_;
  std::uint64_t slots_at_;
  std::uint64_t writers_at_;
  std::uint64_t bytes_;
  std::uint32_t map_words_;
};

/// The boot id of this machine's kernel.
void read_boot_id(std::uint8_t (&id)[16]);
/// What names this machine across reboots: /etc/machine-id, or the boot id where there is none.
void read_machine_id(std::uint8_t (&id)[16]);

}  // namespace beluga
