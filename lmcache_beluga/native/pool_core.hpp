#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "copy.hpp"
#include "fingerprint.hpp"
#include "host_context.hpp"
#include "host_view.hpp"
#include "key_record.hpp"
#include "leases.hpp"
#include "publication.hpp"
#include "slots.hpp"

namespace beluga {

/// One chunk as a walk over the pool finds it.
struct Entry {
  std::vector<std::byte> record;
  std::vector<std::byte> meta;
  std::uint64_t size = 0;
  std::uint64_t generation = 0;
  std::uint64_t idle_ms = 0;
  std::uint32_t host = 0;
  std::uint32_t extent = 0;
  std::uint32_t slot = 0;
  std::uint32_t depth = 0;
  bool closing = false;
  bool leased = false;
};

/// Own extents that are cut alike.
struct CutUse {
  std::uint64_t slot_size = 0;
  std::uint32_t extents = 0;
  std::uint64_t slots = 0;
  std::uint64_t used = 0;
  std::uint64_t bytes = 0;  // of chunks
};

/// What is in the pool now, seen from this host.
struct Occupancy {
  std::uint64_t chunks = 0;
  std::uint64_t bytes = 0;
  std::uint64_t wasted = 0;  // slot bytes that hold no payload byte
  std::uint64_t writing = 0;
  std::uint64_t closing = 0;
  std::uint64_t leased = 0;  // slots that some process of this host leases
  std::uint32_t extents_owned = 0;
  std::uint32_t extents_free = 0;
  std::vector<CutUse> cuts;
};

struct CheckReport {
  std::vector<std::string> errors;  // at most kCheckErrors
  std::uint64_t problems = 0;
  std::uint64_t slots = 0;
  std::uint64_t chunks = 0;
  std::uint64_t free = 0;
  std::uint64_t writing = 0;
  std::uint64_t closing = 0;
  std::uint64_t lane_entries = 0;
};
inline constexpr std::size_t kCheckErrors = 200;

/// One process's handle on one pool. Thread-safe. Every method throws pool_closed once the pool is closed, by
/// close() or because the file shrank or was formatted anew, and forked_handle in a forked child; those that
/// give something back (release, unpin, abandon) do nothing then.
class PoolCore {
 public:
  virtual ~PoolCore() = default;

  /// Views of this handle that were not released.
  std::atomic<std::int64_t> views{0};

  virtual const HostContext& context() const noexcept = 0;
  virtual CopyEngine& copier() noexcept = 0;

  virtual void contains(std::span<const Fingerprint> prints, std::span<bool> out) = 0;
  virtual std::size_t contains_prefix(std::span<const Fingerprint> prints) = 0;
  /// Need this not be stored, since it is there already? Counts what a put of it would count.
  virtual bool is_duplicate(const Fingerprint& print) = 0;

  /// Leases; with `stop_at_miss` only the longest present prefix. Null for a miss.
  virtual void lease(const KeyBatch& keys, bool stop_at_miss, std::vector<std::shared_ptr<Lease>>& out) = 0;
  virtual std::byte* address_of(const Lease& lease) const noexcept = 0;
  /// Is the chunk untouched since it was leased? With options.verify, are its bytes still those that were stored?
  virtual bool valid(Lease& lease) noexcept = 0;
  virtual void release(const std::shared_ptr<Lease>& lease) noexcept = 0;

  virtual std::size_t pin_prefix(const KeyBatch& keys) = 0;
  /// Pins every key that is present, whichever are missing in between: 1 in `pinned`, 0 for a miss.
  virtual void pin_each(const KeyBatch& keys, std::span<std::uint8_t> pinned) = 0;
  virtual bool unpin(const Fingerprint& print) noexcept = 0;
  virtual bool pinned(const Fingerprint& print) const noexcept = 0;
  virtual std::size_t unpin_all() noexcept = 0;

  /// A slot to write into; the caller commits or abandons it.
  virtual Refusal reserve(std::uint64_t size, Slot& slot) = 0;
  /// Publishes a written slot under key 0 of `key`. Whatever happens, the slot is no longer the caller's. With
  /// `lease` the chunk is leased before anybody could evict it (null when that failed).
  virtual PutResult commit(const Slot& slot, const KeyBatch& key, std::span<const std::byte> meta,
                           std::uint64_t size, std::uint32_t depth, std::shared_ptr<Lease>* lease) = 0;
  virtual void abandon(const Slot& slot) noexcept = 0;

  /// Copies chunks in. `sources[i]` is the payload of key i.
  virtual void put(const KeyBatch& keys, std::span<const std::span<const std::byte>> sources,
                   std::span<const std::span<const std::byte>> metas, std::uint32_t first_depth,
                   std::span<PutResult> results) = 0;
  /// Copies chunks out: bytes copied, or -1 for a miss. A buffer that is too small throws invalid_argument. With `metas`
  /// a chunk that was put with another metadata, or is larger than its buffer, is a miss.
  virtual void read_into(const KeyBatch& keys, std::span<const std::span<std::byte>> buffers,
                         std::span<std::int64_t> copied, std::span<const std::span<const std::byte>> metas = {}) = 0;

  virtual std::size_t touch(std::span<const Fingerprint> prints) = 0;
  virtual std::size_t remove(std::span<const Fingerprint> prints) = 0;
  virtual std::uint64_t clear() = 0;
  /// Empties this host and takes its page out of use; from the first call on this handle stores nothing. True: done,
  /// and the handle is closed. False: chunks are still leased; try again in a while. Throws host_in_use while other
  /// processes of the host are attached.
  virtual bool retire() = 0;
  virtual std::uint64_t evict(std::uint64_t bytes) = 0;

  /// From now on, and until this process is gone, no process of this host takes pages away from payload, so that they
  /// may be registered with a GPU. False: except one that was about to; then only those of an extent in which this
  /// process holds a lease or a slot meanwhile.
  virtual bool hold_pages() = 0;
  /// From now on, processes that are not attached use slots and leases of this one. When it ends while it holds any,
  /// in whichever way, they have `ms` until somebody else may have them.
  virtual void lend(std::uint32_t ms) = 0;
  /// Chunks from slot `cursor` on, at most `most`; `cursor` moves on, and past the last slot at the end.
  virtual std::vector<Entry> list(std::uint32_t& cursor, std::size_t most) = 0;
  virtual CheckReport check() = 0;
  virtual Occupancy occupancy() = 0;
  virtual std::vector<HostView> hosts() = 0;
  virtual void totals(std::span<std::uint64_t, kCounts> out) const = 0;
  virtual std::uint64_t pins() const = 0;
  virtual std::string last_no_space() const = 0;

  virtual void close() noexcept = 0;
  virtual bool closed() const noexcept = 0;
  virtual std::string close_reason() const = 0;
  /// Throws what a method would throw now: pool_closed or forked_handle.
  virtual void check_open() const = 0;
};

/// Joins a pool as a process of host options.host_id. Throws key_scheme, pool_uuid, host_in_use, unsupported,
/// pool_busy, no_space, pool_permission, pool_io, invalid_argument.
std::shared_ptr<PoolCore> attach_pool(std::shared_ptr<PoolMemory> pool, const AttachOptions& options);

}  // namespace beluga
