#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>

#include "membership.hpp"
#include "payload_transfer.hpp"
#include "pool_core.hpp"
#include "pool_process.hpp"
#include "walk.hpp"

namespace beluga {

struct PrintHash {
  std::size_t operator()(const Fingerprint& print) const noexcept { return print.lo; }
};

/// A process's handle on a pool: the protocols put together, and the heartbeat that keeps them going.
template <VisibilityPolicy V>
class Store final : public PoolCore {
 public:
  Store(std::shared_ptr<PoolMemory> pool, Membership member, const AttachOptions& options, std::uint64_t key_scheme)
      : member_(std::move(member)),
        self_(std::move(pool), member_.control, options, member_.process),
        walk_(self_.context, self_.index, self_.hosts, self_.slots, self_.extents),
        copier_(options.copy_threads) {
    ProcessEntry& entry = context_.control->process(context_.process - 1);
    if (member_.first) {
      self_.start_host(host_id_is_certain(), key_scheme);
    } else {
      hosts_.refresh_active();
      // The processes before this one may not have known how prompts are hashed (a command-line tool, say).
      if (key_scheme && V::load(&context_.pool->host(context_.host)->identity.key_scheme) == 0) {
        publish_identity<V>(context_, HostState::member, key_scheme);
      }
      // Also an orderly process may have left a closed chunk that others lease.
      bury(context_.process - 1, slots_.patience());
    }
    describe_process(entry);
    beat();
    member_.initialising.release();
    heartbeat_ = std::thread([this] { run_heartbeat(); });
  }

  ~Store() override {
    close();
    if (context_.forks == fork_generation()) leave();
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
    if (closed_.load(std::memory_order_acquire) || !leases_.valid(lease)) return false;
    return !context_.options.verify || lease.checksum == 0 || still_whole(lease);
  }

  void release(const std::shared_ptr<Lease>& lease) noexcept override {
    if (context_.forks != fork_generation()) return;
    leases_.release(lease);
  }

  std::size_t pin_prefix(const KeyBatch& keys) override {
    check_open();
    hosts_.keep_active_fresh();
    std::vector<std::shared_ptr<Lease>> leases;
    leases_.acquire(keys.prints, [&](std::size_t i) { return keys.record(i); }, true, leases);
    const std::size_t n = keep_pinned(keys, leases);
    count_lookup(keys.size(), n);
    return n;
  }

  void pin_each(const KeyBatch& keys, std::span<std::uint8_t> pinned) override {
    check_open();
    hosts_.keep_active_fresh();
    std::vector<std::shared_ptr<Lease>> leases;
    leases_.acquire(keys.prints, [&](std::size_t i) { return keys.record(i); }, false, leases);
    for (std::size_t i = 0; i < leases.size(); ++i) pinned[i] = leases[i] != nullptr;
    count_lookup(keys.size(), keep_pinned(keys, leases));
  }

  bool unpin(const Fingerprint& print) noexcept override {
    if (context_.forks != fork_generation()) return false;
    std::lock_guard guard(pins_mutex_);
    const auto it = pins_.find(print);
    if (it == pins_.end()) return false;
    --pin_count_;
    if (--it->second.count == 0) {
      leases_.release(it->second.lease);
      pins_.erase(it);
    }
    return true;
  }

  bool pinned(const Fingerprint& print) const noexcept override {
    if (context_.forks != fork_generation()) return false;
    std::lock_guard guard(pins_mutex_);
    return pins_.contains(print);
  }

  std::size_t unpin_all() noexcept override {
    if (context_.forks != fork_generation()) return 0;
    std::lock_guard guard(pins_mutex_);
    const std::size_t n = pin_count_;
    std::vector<std::shared_ptr<Lease>> leases;
    for (auto& [print, pin] : pins_) leases.push_back(std::move(pin.lease));
    leases_.release(leases);
    pins_.clear();
    pin_count_ = 0;
    return n;
  }

  Refusal reserve(std::uint64_t size, Slot& slot) override {
    // Counted before it is taken: whoever closes the pool meanwhile either sees it, and leaves the slot alone, or
    // is seen here.
    outstanding_.fetch_add(1, std::memory_order_seq_cst);
    Refusal refusal = Refusal::busy;
    try {
      check_standing();
      if (retiring_.load(std::memory_order_seq_cst)) throw Error(ErrorKind::pool_closed, kRetired);
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
      if (context_.forks == fork_generation()) slots_.abandon(slot.number, slot.generation);
      throw;
    }
    return publish(slot, {key.prints[0], key.record(0), meta, size, depth}, PayloadWrite::cached, lease);
  }

  void abandon(const Slot& slot) noexcept override {
    if (context_.forks != fork_generation()) return;
    const Outstanding done(*this);
    slots_.abandon(slot.number, slot.generation);
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
    const int fd = context_.control->fd();
    const auto deadline =
        std::chrono::steady_clock::now() + std::chrono::milliseconds(context_.options.open_timeout_ms);
    const auto lock = RangeLock::take(fd, kInitLockByte, LockMode::exclusive, deadline);
    if (!lock) throw Error(ErrorKind::pool_busy, "another process is attaching as this host: try again");
    for (std::uint32_t p = 0; p < kMaxProcesses; ++p) {
      if (p + 1 == context_.process || !held_by_other(fd, kProcessLockByte + p)) continue;
      throw Error(ErrorKind::host_in_use, "host " + std::to_string(context_.host) +
                                              " has other processes attached: end them before it is retired");
    }
    if (outstanding_.load(std::memory_order_seq_cst) != 0 || !self_.retire()) return false;
    // Whoever attaches from now on is the first process of a host that joins.
    V::store(&context_.header().ready, std::uint32_t{0});
    shut(kRetired);
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

  void totals(std::span<std::uint64_t, kCounts> out) const override {
    for (std::size_t c = 0; c < kCounts; ++c) {
      const auto what = static_cast<Count>(c);
      out[c] = context_.header().departed.get(what);
      for (std::uint32_t p = 0; p < kMaxProcesses; ++p) out[c] += context_.control->process(p).counters.get(what);
    }
  }
  std::uint64_t pins() const override {
    std::lock_guard guard(pins_mutex_);
    return pin_count_;
  }
  std::string last_no_space() const override { return slots_.last_no_space(); }

  void close() noexcept override {
    if (context_.forks != fork_generation()) return;
    {
      std::lock_guard guard(beat_mutex_);
      if (stopping_) return;
      stopping_ = true;
    }
    shut("the pool was closed");
    beat_wake_.notify_all();
    if (heartbeat_.joinable()) heartbeat_.join();
    {
      std::lock_guard guard(pins_mutex_);
      pins_.clear();
      pin_count_ = 0;
    }
    // Somebody may still be writing into a reserved slot: the membership, which keeps the slot from being
    // reused, then ends with the last reservation.
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (outstanding_.load(std::memory_order_seq_cst) == 0) leave();
  }
  bool closed() const noexcept override { return closed_.load(std::memory_order_acquire); }
  std::string close_reason() const override {
    std::lock_guard guard(reason_mutex_);
    return reason_;
  }
  void check_open() const override {
    if (context_.forks != fork_generation()) {
      throw Error(ErrorKind::forked_handle,
                  "this pool was attached before a fork; the child must attach its own (Pool.attach), or start "
                  "workers with the 'spawn' method");
    }
    if (closed_.load(std::memory_order_acquire)) throw Error(ErrorKind::pool_closed, close_reason());
    if (context_.pool->faulted() || context_.control->faulted()) {
      shut(kTruncated);
      throw Error(ErrorKind::pool_closed, close_reason());
    }
  }

 private:
  static constexpr const char* kTruncated =
      "the pool's storage is gone (truncated, removed from a full file system, or poisoned): everything in it is a "
      "miss; format the pool and restart";
  static constexpr const char* kFormatted =
      "the pool was formatted anew while it was attached: everything in it is a miss; attach again";
  static constexpr const char* kTakenOver =
      "another machine has taken this host id over: everything is a miss; give every machine its own beluga.host_id";

  static constexpr std::uint64_t kStreamedFrom = 32 << 20;

  static constexpr const char* kRetired = "this host was retired: attach again to have it join anew";

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

  struct Pin {
    std::shared_ptr<Lease> lease;
    std::uint32_t count = 0;
    std::uint64_t deadline = 0;
  };

  /// Turns the leases that there are into pins of their keys, and says how many.
  std::size_t keep_pinned(const KeyBatch& keys, std::span<const std::shared_ptr<Lease>> leases) {
    std::lock_guard guard(pins_mutex_);
    const std::uint64_t deadline = context_.now_ms() + context_.options.pin_timeout_ms;
    std::size_t n = 0;
    for (std::size_t i = 0; i < leases.size(); ++i) {
      if (!leases[i]) continue;
      Pin& pin = pins_[keys.prints[i]];
      if (pin.lease && pin.lease != leases[i]) {
        // The chunk was evicted and stored again since the key was first pinned: follow the living copy.
        leases_.release(pin.lease);
        pin.lease = leases[i];
      } else if (pin.lease) {
        leases_.release(leases[i]);  // one hold serves all pins of a key
      } else {
        pin.lease = leases[i];
      }
      ++pin.count;
      pin.deadline = deadline;
      ++n;
    }
    pin_count_ += n;
    return n;
  }

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
      if (!self_.formatted_as_attached()) shut(kFormatted);
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
      shut(kTruncated);
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
    if (!stands(self_.standing())) check_open();
  }

  /// Closes the pool for good when it is no longer what was attached, or this host no longer who it was.
  bool stands(typename PoolProcess<V>::Beat found) const {
    switch (found) {
      case PoolProcess<V>::Beat::formatted:
        shut(kFormatted);
        return false;
      case PoolProcess<V>::Beat::taken_over:
        shut(kTakenOver);
        return false;
      case PoolProcess<V>::Beat::fine:
        return true;
    }
    return false;
  }

  // ---- heartbeat

  void run_heartbeat() {
    pthread_setname_np(pthread_self(), "beluga-beat");
    std::unique_lock lock(beat_mutex_);
    while (!stopping_) {
      beat_wake_.wait_for(lock, std::chrono::milliseconds(context_.options.heartbeat_ms));
      if (stopping_) break;
      lock.unlock();
      try {
        beat();
      } catch (const std::exception&) {
        context_.count(Count::garbage);  // a full disk while sweeping: tried again at the next beat
      }
      lock.lock();
    }
  }

  void beat() {
    if (closed_.load(std::memory_order_acquire)) return;
    if (context_.pool->faulted() || context_.control->faulted() || context_.pool->truncated()) {
      shut(kTruncated);
      return;
    }
    if (!stands(self_.beat())) return;
    lapse_pins(context_.now_ms());
    if (self_.slow_beat()) {
      sweep_dead();
      publish_counters();
    }
  }

  /// Can nobody but this machine's processes that share this /dev/shm have the host id?
  bool host_id_is_certain() const {
    if (!context_.pool->shared_between_machines()) return true;
    // A coherent pool in a plain file is one machine's.
    const bool device = context_.pool->devices()[0]->file().kind() == DeviceKind::devdax;
    if (V::mode == VisibilityMode::coherent && !device && !context_.options.takeover) return true;
    return member_.former_nonce != 0 &&
           observe_identity<V>(*context_.pool, context_.host).nonce == member_.former_nonce;
  }

  void publish_counters() {
    HostPage& page = *context_.pool->host(context_.host);
    std::array<std::uint64_t, kCounts> sums{};
    totals(sums);
    store_words<V>(page.counters, sums.data(), sizeof(sums));
    V::publish(Point::statistics, page.counters, sizeof(sums));
    std::uint32_t alive = 0;
    for (std::uint32_t p = 0; p < kMaxProcesses; ++p) alive += V::load(&context_.control->process(p).state) != 0;
    V::store(&page.heartbeat.processes, alive);
    V::publish(Point::statistics, &page.heartbeat, kLine);
  }

  void lapse_pins(std::uint64_t now) {
    std::lock_guard guard(pins_mutex_);
    for (auto it = pins_.begin(); it != pins_.end();) {
      if (it->second.deadline > now) {
        ++it;
        continue;
      }
      leases_.release(it->second.lease);
      pin_count_ -= it->second.count;
      it = pins_.erase(it);
    }
  }

  /// Any living process buries the dead ones of its host.
  void sweep_dead() {
    for (std::uint32_t p = 0; p < kMaxProcesses; ++p) {
      if (p + 1 == context_.process) continue;
      ProcessEntry& entry = context_.control->process(p);
      if (V::load(&entry.state) == 0) continue;
      const auto lock = RangeLock::try_take(context_.control->fd(), kProcessLockByte + p, LockMode::exclusive);
      if (!lock || V::load(&entry.state) == 0) continue;
      if (process_has_ended(entry, context_.options.dead_after_ms)) bury(p, Slots<V>::kBriefMs);
    }
  }

  /// The caller holds the lock of the entry, whose process has ended.
  void bury(std::uint32_t p, std::uint32_t timeout_ms) {
    ProcessEntry& entry = context_.control->process(p);
    if (!self_.upkeep.sweep(p + 1, timeout_ms) && p + 1 != context_.process) return;  // tried again later
    for (std::size_t c = 0; c < kCounts; ++c) {
      const auto what = static_cast<Count>(c);
      context_.header().departed.add(what, entry.counters.get(what));
      V::store(&entry.counters.values[c], std::uint64_t{0});
    }
    if (p + 1 != context_.process) context_.count(Count::swept_processes);  // not one that leaves in order
    V::store(&entry.holds_pages, std::uint32_t{0});
    V::store(&entry.drops_pages, std::uint32_t{0});
    V::store(&entry.state, std::uint32_t{0});
  }

  void shut(const char* reason) const {
    std::lock_guard guard(reason_mutex_);
    if (closed_.load(std::memory_order_acquire)) return;
    reason_ = reason;
    closed_.store(true, std::memory_order_release);
  }

  /// Leaves the host: nothing of this process remains. The last one takes the control block along.
  void leave() noexcept {
    if (!member_.alive.held()) return;
    try {
      const bool whole = !context_.pool->faulted() && !context_.control->faulted() &&
                         self_.formatted_as_attached() && identity_is_ours<V>(context_);
      if (whole) leases_.drop_all();
      const int fd = context_.control->fd();
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
      const auto lock = RangeLock::take(fd, kInitLockByte, LockMode::exclusive, deadline);
      if (lock && whole) bury(context_.process - 1, slots_.patience());
      bool last = static_cast<bool>(lock);
      for (std::uint32_t p = 0; last && p < kMaxProcesses; ++p) {
        if (p + 1 != context_.process) last = !held_by_other(fd, kProcessLockByte + p);
      }
      if (last && whole) self_.heartbeat.leave();
      if (last && context_.control->linked()) unlink(context_.control->path().c_str());
      member_.alive.release();
      member_.attached.release();
    } catch (const std::exception&) {
      // The locks go with the descriptors, and the next process sweeps what was left.
      member_.alive.release();
      member_.attached.release();
    }
  }

  Membership member_;
  PoolProcess<V> self_;
  HostContext& context_ = self_.context;
  Index<V>& index_ = self_.index;
  Hosts<V>& hosts_ = self_.hosts;
  Leases<V>& leases_ = self_.leases;
  Slots<V>& slots_ = self_.slots;
  Walk<V> walk_;
  CopyEngine copier_;

  mutable std::mutex pins_mutex_;
  std::unordered_map<Fingerprint, Pin, PrintHash> pins_;
  std::uint64_t pin_count_ = 0;

  std::atomic<std::uint64_t> outstanding_{0};  // slots reserved and neither published nor abandoned
  std::atomic<bool> retiring_{false};
  mutable std::atomic<bool> closed_{false};
  mutable std::mutex reason_mutex_;
  mutable std::string reason_;

  std::mutex beat_mutex_;
  std::condition_variable beat_wake_;
  bool stopping_ = false;
  std::thread heartbeat_;
};

}  // namespace beluga
