#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <utility>

#include "closure.hpp"
#include "payload_transfer.hpp"
#include "pins.hpp"
#include "pool_core.hpp"
#include "presence.hpp"
#include "walk.hpp"

namespace beluga {

/// A process's handle on a pool: what callers may do with chunks, on top of the protocols.
template <VisibilityPolicy V>
class Store final : public PoolCore {
 public:
  Store(std::shared_ptr<PoolMemory> pool, Membership member, const AttachOptions& options, std::uint64_t key_scheme)
      : self_(std::move(pool), member.control, options, member.process),
        presence_(std::move(member), self_, closure_),
        walk_(self_.context, self_.index, self_.hosts, self_.slots, self_.extents),
        copier_(options.copy_threads) {
    presence_.enter(key_scheme);
    presence_.start([this] { pins_.lapse(); });
  }

  ~Store() override {
    close();
    if (context_.forks == fork_generation()) presence_.leave();
  }

  const HostContext& context() const noexcept override { return context_; }
  CopyEngine& copier() noexcept override { return copier_; }

  void contains(std::span<const Fingerprint> prints, std::span<bool> out) override {
    check_open();
    hosts_.keep_active_fresh();
    std::vector<Found> found(prints.size());
    index_.find(prints, found, false);
    std::size_t hits = 0;
    for (std::size_t i = 0; i < prints.size(); ++i) hits += out[i] = static_cast<bool>(found[i]);
    count_lookup(prints.size(), hits);
  }

  std::size_t contains_prefix(std::span<const Fingerprint> prints) override {
    check_open();
    hosts_.keep_active_fresh();
    static thread_local std::vector<Found> found;
    found.assign(prints.size(), Found{});
    const std::size_t n = index_.find(prints, found, true);
    count_lookup(prints.size(), n);
    return n;
  }

  bool is_duplicate(const Fingerprint& print) override {
    check_open();
    hosts_.keep_active_fresh();
    Found found[1];
    index_.find(std::span(&print, 1), found, false);
    if (!found[0]) return false;
    context_.count(Count::duplicates);
    return true;
  }

  void lease(const KeyBatch& keys, bool stop_at_miss, std::vector<std::shared_ptr<Lease>>& out) override {
    check_open();
    hosts_.keep_active_fresh();
    leases_.acquire(keys.prints, [&](std::size_t i) { return keys.record(i); }, stop_at_miss, out);
    if (context_.options.verify) verify(stop_at_miss, out);
    count_gets(out);
  }

  std::byte* address_of(const Lease& lease) const noexcept override {
    return context_.pool->payload(context_.pool->extent_of(lease.slot)) + lease.offset;
  }

  bool valid(Lease& lease) noexcept override {
    if (context_.forks != fork_generation()) return false;
    if (closure_.is_shut() || !leases_.valid(lease)) return false;
    return !context_.options.verify || lease.checksum == 0 || still_whole(lease);
  }

  void release(const std::shared_ptr<Lease>& lease) noexcept override {
    if (context_.forks != fork_generation() || presence_.parted()) return;
    leases_.release(lease);
  }

  std::size_t pin_prefix(const KeyBatch& keys) override {
    check_open();
    hosts_.keep_active_fresh();
    std::vector<std::shared_ptr<Lease>> leases;
    leases_.acquire(keys.prints, [&](std::size_t i) { return keys.record(i); }, true, leases);
    const std::size_t n = pins_.keep(keys.prints, leases);
    count_lookup(keys.size(), n);
    return n;
  }

  void pin_each(const KeyBatch& keys, std::span<std::uint8_t> pinned) override {
    check_open();
    hosts_.keep_active_fresh();
    std::vector<std::shared_ptr<Lease>> leases;
    leases_.acquire(keys.prints, [&](std::size_t i) { return keys.record(i); }, false, leases);
    for (std::size_t i = 0; i < leases.size(); ++i) pinned[i] = leases[i] != nullptr;
    count_lookup(keys.size(), pins_.keep(keys.prints, leases));
  }

  bool unpin(const Fingerprint& print) noexcept override {
    return context_.forks == fork_generation() && pins_.unpin(print);
  }

  bool pinned(const Fingerprint& print) const noexcept override {
    return context_.forks == fork_generation() && pins_.pinned(print);
  }

  std::size_t unpin_all() noexcept override {
    return context_.forks == fork_generation() ? pins_.unpin_all() : 0;
  }

  Refusal reserve(std::uint64_t size, Slot& slot) override {
    // Counted before it is taken: whoever closes the pool meanwhile either sees it, and leaves the slot alone, or
    // is seen here.
    outstanding_.fetch_add(1, std::memory_order_seq_cst);
    Refusal refusal = Refusal::busy;
    try {
      check_standing();
      if (retiring_.load(std::memory_order_seq_cst)) throw Error(ErrorKind::pool_closed, Closure::kRetired);
      hosts_.keep_active_fresh();
      refusal = self_.eviction.allocate(size, slot);
    } catch (...) {
      outstanding_.fetch_sub(1, std::memory_order_acq_rel);
      throw;
    }
    if (refusal != Refusal::none) outstanding_.fetch_sub(1, std::memory_order_acq_rel);
    if (refusal == Refusal::leased) context_.count(Count::refused_leased);
    if (refusal == Refusal::no_space) context_.count(Count::refused_no_space);
    if (refusal == Refusal::busy) context_.count(Count::refused_busy);
    return refusal;
  }

  PutResult commit(const Slot& slot, const KeyBatch& key, std::span<const std::byte> meta, std::uint64_t size,
                   std::uint32_t depth, std::shared_ptr<Lease>* lease) override {
    const Outstanding done(*this);
    try {
      check_open();
    } catch (...) {
      // In a forked child the slot is the parent's.
      if (context_.forks == fork_generation() && !presence_.parted()) slots_.abandon(slot.number, slot.generation);
      throw;
    }
    return publish(slot, {key.prints[0], key.record(0), meta, size, depth}, PayloadWrite::cached, lease);
  }

  void abandon(const Slot& slot) noexcept override {
    if (context_.forks != fork_generation()) return;
    const Outstanding done(*this);
    if (!presence_.parted()) slots_.abandon(slot.number, slot.generation);
  }

  void put(const KeyBatch& keys, std::span<const std::span<const std::byte>> sources,
           std::span<const std::span<const std::byte>> metas, std::uint32_t first_depth,
           std::span<PutResult> results) override {
    check_open();
    hosts_.keep_active_fresh();
    for (std::size_t k = 0; k < keys.size(); ++k) {
      check_record(keys.record(k), metas.empty() ? std::span<const std::byte>{} : metas[k]);
      slots_.cut_for(sources[k].size());
    }
    std::vector<Found> found(keys.size());
    index_.find(keys.prints, found, false);
    // In groups, so that a long batch does not hold more unpublished slots than it must.
    constexpr std::size_t kGroup = 16;
    for (std::size_t at = 0; at < keys.size(); at += kGroup) {
      const std::size_t n = std::min(kGroup, keys.size() - at);
      Slot slots[kGroup];
      bool taken[kGroup] = {};
      try {
        PayloadTransfer transfer(context_.options.verify);
        for (std::size_t i = 0; i < n; ++i) {
          const std::size_t k = at + i;
          if (found[k]) {
            results[k] = PutResult::duplicate;
            context_.count(Count::duplicates);
            continue;
          }
          results[k] = PutResult::refused;
          if (reserve(sources[k].size(), slots[i]) != Refusal::none) continue;
          taken[i] = true;
          transfer.add(slots[i].address, sources[k]);
        }
        transfer.run(copier_, CopyDirection::to_pool);
        std::size_t copied = 0;
        for (std::size_t i = 0; i < n; ++i) {
          if (!std::exchange(taken[i], false)) continue;
          const Outstanding done(*this);
          const std::size_t k = at + i;
          const ChunkDescription chunk{keys.prints[k], keys.record(k),
                                       metas.empty() ? std::span<const std::byte>{} : metas[k], sources[k].size(),
                                       first_depth + static_cast<std::uint32_t>(k), transfer.checksum(copied++)};
          results[k] = publish(slots[i], chunk, PayloadWrite::streamed, nullptr);
        }
      } catch (...) {
        for (std::size_t i = 0; i < n; ++i) {
          if (taken[i]) abandon(slots[i]);
        }
        throw;
      }
    }
  }

  void read_into(const KeyBatch& keys, std::span<const std::span<std::byte>> buffers, std::span<std::int64_t> copied,
                 std::span<const std::span<const std::byte>> metas) override {
    check_open();
    hosts_.keep_active_fresh();
    std::vector<std::shared_ptr<Lease>> leases;
    leases_.acquire(keys.prints, [&](std::size_t i) { return keys.record(i); }, false, leases);
    PayloadTransfer transfer(context_.options.verify);
    bool too_small = false;
    std::uint64_t total = 0;
    for (std::size_t i = 0; i < leases.size(); ++i) {
      copied[i] = -1;
      if (!leases[i]) continue;
      if (!metas.empty() && !is_as_expected(*leases[i], buffers[i].size(), metas[i])) {
        leases_.release(std::exchange(leases[i], nullptr));
        continue;
      }
      too_small |= leases[i]->size > buffers[i].size();
      if (!too_small) transfer.add(buffers[i].data(), payload_of(*leases[i]));
      total += leases[i]->size;
    }
    // What is more than caches hold is not in them when it is used: better not to read its lines before.
    const bool streamed = total >= kStreamedFrom;
    if (!too_small) transfer.run(copier_, streamed ? CopyDirection::streamed_from_pool : CopyDirection::from_pool);
    std::size_t n = 0;
    for (std::size_t i = 0; i < leases.size(); ++i) {
      if (!leases[i]) continue;
      const bool good = too_small || intact(*leases[i], transfer.checksum(n++));
      // The chunk must not have been touched while it was copied.
      if (!too_small && good && leases_.valid(*leases[i])) copied[i] = static_cast<std::int64_t>(leases[i]->size);
      leases_.release(leases[i]);
      if (!good) leases[i] = nullptr;
    }
    count_gets(leases);
    if (too_small) throw Error(ErrorKind::invalid_argument, "a buffer is smaller than the chunk it is to hold");
  }

  std::size_t touch(std::span<const Fingerprint> prints) override {
    check_open();
    hosts_.keep_active_fresh();
    std::vector<Found> found(prints.size());
    index_.find(prints, found, false);
    std::size_t n = 0;
    for (const Found& f : found) {
      if (!f) continue;
      leases_.touch(f.slot);
      ++n;
    }
    return n;
  }

  std::size_t remove(std::span<const Fingerprint> prints) override {
    check_standing();
    hosts_.keep_active_fresh();
    std::size_t removed = 0;
    std::uint32_t patience_ms = self_.asking_patience_ms();
    for (const Fingerprint& print : prints) removed += self_.remove(print, patience_ms);
    context_.count(Count::removes, removed);
    return removed;
  }

  std::uint64_t clear() override {
    check_standing();
    const std::uint64_t removed = self_.clear();
    context_.count(Count::removes, removed);
    return removed;
  }

  bool retire() override {
    check_standing();
    retiring_.store(true, std::memory_order_seq_cst);
    // Under the initialisation lock: nobody joins this host meanwhile.
    const auto deadline =
        std::chrono::steady_clock::now() + std::chrono::milliseconds(context_.options.open_timeout_ms);
    const auto lock = RangeLock::take(context_.control->fd(), kInitLockByte, LockMode::exclusive, deadline);
    if (!lock) throw Error(ErrorKind::pool_busy, "another process is attaching as this host: try again");
    if (!presence_.alone()) {
      throw Error(ErrorKind::host_in_use, "host " + std::to_string(context_.host) +
                                              " has other processes attached: end them before it is retired");
    }
    if (outstanding_.load(std::memory_order_seq_cst) != 0 || !self_.retire()) return false;
    // Whoever attaches from now on is the first process of a host that joins.
    V::store(&context_.header().ready, std::uint32_t{0});
    closure_.shut(Closure::kRetired);
    return true;
  }

  std::uint64_t evict(std::uint64_t bytes) override {
    check_standing();
    return self_.eviction.evict_bytes(bytes);
  }

  bool hold_pages() override {
    check_open();
    return self_.extents.hold_pages(context_.options.lock_timeout_ms);
  }

  void lend(std::uint32_t ms) override {
    check_open();
    V::store(&context_.control->process(context_.process - 1).lends_ms, ms);
    lends_.store(ms != 0, std::memory_order_release);
  }

  std::vector<Entry> list(std::uint32_t& cursor, std::size_t most) override {
    check_open();
    return walk_.list(cursor, most);
  }
  CheckReport check() override {
    check_open();
    return walk_.check();
  }
  Occupancy occupancy() override {
    check_open();
    return walk_.occupancy();
  }
  std::vector<HostView> hosts() override {
    check_open();
    return walk_.hosts();
  }

  void totals(std::span<std::uint64_t, kCounts> out) const override { presence_.totals(out); }
  std::uint64_t pins() const override { return pins_.count(); }
  std::string last_no_space() const override { return slots_.last_no_space(); }

  void close() noexcept override {
    if (context_.forks != fork_generation() || !presence_.stop()) return;
    pins_.forget();
    if (lends_.load(std::memory_order_acquire) && (outstanding_.load() != 0 || leases_.count() != 0)) {
      presence_.part();
      return;
    }
    // Somebody may still be writing into a reserved slot: the membership, which keeps the slot from being
    // reused, then ends with the last reservation.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (outstanding_.load(std::memory_order_seq_cst) == 0) presence_.leave();
  }
  bool closed() const noexcept override { return closure_.is_shut(); }
  std::string close_reason() const override { return closure_.reason(); }
  void check_open() const override {
    if (context_.forks != fork_generation()) {
      throw Error(ErrorKind::forked_handle,
                  "this pool was attached before a fork; the child must attach its own (Pool.attach), or start "
                  "workers with the 'spawn' method");
    }
    if (closure_.is_shut()) throw Error(ErrorKind::pool_closed, close_reason());
    if (context_.pool->faulted() || context_.control->faulted()) {
      closure_.shut(Closure::kTruncated);
      throw Error(ErrorKind::pool_closed, close_reason());
    }
  }

 private:
  static constexpr std::uint64_t kStreamedFrom = 32 << 20;

  /// Ends a reservation when it goes out of scope.
  class Outstanding {
   public:
    explicit Outstanding(Store& store) : store_(store) {}
    ~Outstanding() { store_.outstanding_.fetch_sub(1, std::memory_order_acq_rel); }
    Outstanding(const Outstanding&) = delete;
    Outstanding& operator=(const Outstanding&) = delete;

   private:
    Store& store_;
  };

  std::span<const std::byte> payload_of(const Lease& lease) const noexcept {
    return {address_of(lease), lease.size};
  }

  static bool is_as_expected(const Lease& lease, std::size_t size, std::span<const std::byte> meta) {
    const std::span<const std::byte> found = lease.meta();
    return lease.size <= size && std::equal(found.begin(), found.end(), meta.begin(), meta.end());
  }

  /// Reads what was leased, before it is handed out: a chunk whose bytes are not those that were stored is a miss.
  void verify(bool stop_at_miss, std::span<std::shared_ptr<Lease>> leases) {
    PayloadTransfer transfer(true);
    for (const auto& lease : leases) {
      if (lease && lease->checksum) transfer.add(nullptr, payload_of(*lease));
    }
    transfer.run(copier_, CopyDirection::from_pool);
    std::size_t n = 0;
    bool missed = false;
    for (auto& lease : leases) {
      if (!lease) continue;
      const bool good = intact(*lease, lease->checksum ? transfer.checksum(n++) : 0);
      if (good && !missed) continue;
      leases_.release(lease);
      lease = nullptr;
      missed = stop_at_miss;
    }
  }

  /// Compares what was read of a chunk with what was stored, `found` being its checksum. One that differs goes, so
  /// that it can be stored anew.
  bool intact(Lease& lease, std::uint64_t found) {
    if (!context_.options.verify) return true;
    if (lease.checksum == 0) {
      context_.count(Count::unverified);
      return true;
    }
    if (found == lease.checksum) return true;
    if (!leases_.valid(lease)) return false;  // overwritten meanwhile, in order
    context_.count(Count::checksum_failures);
    const std::uint64_t word = make_word(lease.generation, 0, SlotState::ready);
    if (context_.owns(lease.slot)) {
      self_.removal.remove_slot(lease.slot, word, lease.print);
    } else {
      self_.requests.ask(Requests<V>::Operation::remove, lease.slot, lease.generation, 0);
    }
    return false;
  }

  /// Reads a chunk again whose bytes were used where they lie: what is right now was right before.
  bool still_whole(Lease& lease) noexcept {
    try {
      PayloadTransfer transfer(true);
      transfer.add(nullptr, payload_of(lease));
      transfer.run(copier_, CopyDirection::from_pool);
      if (intact(lease, transfer.checksum(0))) return true;
    } catch (const std::exception&) {
      // No memory to find out.
    }
    lease.lost.store(true, std::memory_order_release);
    return false;
  }

  void count_gets(std::span<const std::shared_ptr<Lease>> leases) const {
    std::uint64_t hits = 0;
    std::uint64_t bytes = 0;
    for (const auto& lease : leases) {
      if (!lease) continue;
      ++hits;
      bytes += lease->size;
    }
    count_lookup(leases.size(), hits);
    context_.count(Count::gets, hits);
    context_.count(Count::get_bytes, bytes);
  }

  void count_lookup(std::size_t keys, std::size_t hits) const {
    context_.count(Count::lookups);
    context_.count(Count::hits, hits);
    context_.count(Count::misses, keys - hits);
  }

  void check_record(std::span<const std::byte> record, std::span<const std::byte> meta) const {
    const std::size_t bytes = record.size() + meta.size();
    if (bytes <= context_.sb().record_bytes && record.size() <= 0xffff && !record.empty()) return;
    throw Error(ErrorKind::record_too_large,
                "a key record of " + std::to_string(record.size()) + " bytes with " + std::to_string(meta.size()) +
                    " bytes of metadata does not fit into the " + std::to_string(context_.sb().record_bytes) +
                    " bytes of a descriptor: use a shorter model name or tags");
  }

  /// Makes a written slot a chunk. G2 holds from its return on.
  PutResult publish(const Slot& slot, const ChunkDescription& chunk, PayloadWrite how,
                    std::shared_ptr<Lease>* lease) {
    if (!self_.publication.reserved(slot)) {  // only damage takes a reserved slot away
      slots_.abandon(slot.number, slot.generation);
      context_.count(Count::garbage);
      return PutResult::refused;
    }
    try {
      check_record(chunk.record, chunk.meta);
      if (chunk.size < 1 || chunk.size > slot.capacity) {
        throw Error(ErrorKind::invalid_argument, "a chunk of " + std::to_string(chunk.size) +
                                                     " bytes was reserved with " + std::to_string(slot.capacity));
      }
      if (!self_.formatted_as_attached()) closure_.shut(Closure::kFormatted);
      check_standing();
    } catch (...) {
      slots_.abandon(slot.number, slot.generation);
      throw;
    }
    ChunkDescription whole = chunk;
    if (context_.options.verify && chunk.checksum == 0) {
      PayloadTransfer written(true);
      written.add(nullptr, {slot.address, chunk.size});
      written.run(copier_, CopyDirection::from_pool);
      whole.checksum = written.checksum(0);
    }
    const PutResult result = self_.publication.publish(slot, whole, how, lease);
    if (context_.pool->faulted()) {
      closure_.shut(Closure::kTruncated);
      return PutResult::refused;
    }
    if (result != PutResult::stored) return result;
    context_.count(Count::puts);
    context_.count(Count::put_bytes, chunk.size);
    if (lease && *lease) leases_.complete(*lease);
    return result;
  }

  /// Before anything is changed.
  void check_standing() const {
    check_open();
    if (!presence_.stands(self_.standing())) check_open();
  }

  PoolProcess<V> self_;
  HostContext& context_ = self_.context;
  Index<V>& index_ = self_.index;
  Hosts<V>& hosts_ = self_.hosts;
  Leases<V>& leases_ = self_.leases;
  Slots<V>& slots_ = self_.slots;
  mutable Closure closure_;
  Presence<V> presence_;
  Pins<V> pins_{context_, leases_};
  Walk<V> walk_;
  CopyEngine copier_;

  std::atomic<std::uint64_t> outstanding_{0};  // slots reserved and neither published nor abandoned
  std::atomic<bool> retiring_{false};
  std::atomic<bool> lends_{false};
};

}  // namespace beluga
