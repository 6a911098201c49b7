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
#include "pool_core.hpp"
#include "recovery.hpp"
#include "upkeep.hpp"
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
        context_(std::move(pool), member_.control, options, member_.process),
        index_(context_),
        hosts_(context_),
        leases_(context_, index_, hosts_),
        extents_(context_, hosts_),
        slots_(context_, index_, extents_),
        eviction_(context_, index_, hosts_, slots_),
        upkeep_(context_, index_, hosts_, leases_, extents_, slots_, eviction_),
        walk_(context_, index_, hosts_, slots_, extents_),
        copier_(options.copy_threads) {
    ProcessEntry& entry = context_.control->process(context_.process - 1);
    if (member_.first) {
      Recovery<V>(context_, index_, hosts_, slots_, extents_).run(key_scheme);
    } else {
      hosts_.refresh_active();
      // The processes before this one may not have known how prompts are hashed (a command-line tool, say).
      if (key_scheme && V::load(&context_.pool->host(context_.host)->identity.key_scheme) == 0) {
        publish_identity<V>(context_, key_scheme);
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
    hosts_.refresh_if_shared();
    std::vector<Found> found(prints.size());
    index_.find(prints, found, false);
    std::size_t hits = 0;
    for (std::size_t i = 0; i < prints.size(); ++i) hits += out[i] = static_cast<bool>(found[i]);
    count_lookup(prints.size(), hits);
  }

  std::size_t contains_prefix(std::span<const Fingerprint> prints) override {
    check_open();
    hosts_.refresh_if_shared();
    static thread_local std::vector<Found> found;
    found.assign(prints.size(), Found{});
    const std::size_t n = index_.find(prints, found, true);
    count_lookup(prints.size(), n);
    return n;
  }

  void lease(const KeyBatch& keys, bool stop_at_miss, std::vector<std::shared_ptr<Lease>>& out) override {
    check_open();
    hosts_.refresh_if_shared();
    leases_.acquire(keys.prints, [&](std::size_t i) { return keys.record(i); }, stop_at_miss, out);
    std::uint64_t hits = 0;
    std::uint64_t bytes = 0;
    for (const auto& lease : out) {
      if (!lease) continue;
      ++hits;
      bytes += lease->size;
    }
    count_lookup(out.size(), hits);
    context_.count(Count::gets, hits);
    context_.count(Count::get_bytes, bytes);
  }

  std::byte* address_of(const Lease& lease) const noexcept override {
    return context_.pool->payload(context_.pool->extent_of(lease.slot)) + lease.offset;
  }

  bool valid(Lease& lease) noexcept override {
    if (context_.forks != fork_generation()) return false;
    return !closed_.load(std::memory_order_acquire) && leases_.valid(lease);
  }

  void release(const std::shared_ptr<Lease>& lease) noexcept override {
    if (context_.forks != fork_generation()) return;
    leases_.release(lease);
  }

  std::size_t pin_prefix(const KeyBatch& keys) override {
    check_open();
    hosts_.refresh_if_shared();
    std::vector<std::shared_ptr<Lease>> leases;
    leases_.acquire(keys.prints, [&](std::size_t i) { return keys.record(i); }, true, leases);
    std::lock_guard guard(pins_mutex_);
    const std::uint64_t deadline = boot_ms() + context_.options.pin_timeout_ms;
    std::size_t n = 0;
    for (; n < leases.size() && leases[n]; ++n) {
      Pin& pin = pins_[keys.prints[n]];
      if (pin.lease && pin.lease != leases[n]) {
        // The chunk was evicted and stored again since the key was first pinned: follow the living copy.
        leases_.release(pin.lease);
        pin.lease = leases[n];
      } else if (pin.lease) {
        leases_.release(leases[n]);  // one hold serves all pins of a key
      } else {
        pin.lease = leases[n];
      }
      ++pin.count;
      pin.deadline = deadline;
      ++pin_count_;
    }
    count_lookup(keys.size(), n);
    return n;
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
      check_open();
      hosts_.refresh_if_shared();
      refusal = eviction_.allocate(size, slot);
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
    return publish(slot, key.prints[0], key.record(0), meta, size, depth, lease);
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
    hosts_.refresh_if_shared();
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
        std::vector<CopyPart> parts;
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
          parts.push_back({slots[i].address, sources[k].data(), sources[k].size()});
        }
        copier_.copy_batch(parts, CopyDirection::to_pool);
        for (std::size_t i = 0; i < n; ++i) {
          if (!std::exchange(taken[i], false)) continue;
          const Outstanding done(*this);
          const std::size_t k = at + i;
          V::publish_payload(slots[i].address, sources[k].size());
          results[k] = publish(slots[i], keys.prints[k], keys.record(k),
                               metas.empty() ? std::span<const std::byte>{} : metas[k], sources[k].size(),
                               first_depth + static_cast<std::uint32_t>(k), nullptr);
        }
      } catch (...) {
        for (std::size_t i = 0; i < n; ++i) {
          if (taken[i]) abandon(slots[i]);
        }
        throw;
      }
    }
  }

  void read_into(const KeyBatch& keys, std::span<const std::span<std::byte>> buffers,
                 std::span<std::int64_t> copied) override {
    std::vector<std::shared_ptr<Lease>> leases;
    lease(keys, false, leases);
    std::vector<CopyPart> parts;
    bool too_small = false;
    for (std::size_t i = 0; i < leases.size(); ++i) {
      copied[i] = -1;
      if (!leases[i]) continue;
      too_small |= leases[i]->size > buffers[i].size();
      if (!too_small) parts.push_back({buffers[i].data(), address_of(*leases[i]), leases[i]->size});
    }
    if (!too_small) copier_.copy_batch(parts, CopyDirection::from_pool);
    for (std::size_t i = 0; i < leases.size(); ++i) {
      if (!leases[i]) continue;
      // The chunk must not have been touched while it was copied.
      if (leases_.valid(*leases[i])) copied[i] = static_cast<std::int64_t>(leases[i]->size);
      leases_.release(leases[i]);
    }
    if (too_small) throw Error(ErrorKind::invalid_argument, "a buffer is smaller than the chunk it is to hold");
  }

  std::size_t touch(std::span<const Fingerprint> prints) override {
    check_open();
    hosts_.refresh_if_shared();
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
    check_open();
    std::size_t removed = 0;
    for (const Fingerprint& print : prints) {
      bool gone = false;
      // Two processes that stored one key at once left a spare copy: remove names them all.
      for (int tries = 0; tries < kRemoveTries; ++tries) {
        const Found found = index_.find_own(print);
        if (!found) break;
        if (remove_slot(found.slot, found.word, print)) {
          gone = true;
        } else {
          // Somebody is trying to evict it right now: it goes, or it is READY again in a moment.
          std::this_thread::sleep_for(std::chrono::microseconds(100));
        }
      }
      removed += gone;
    }
    context_.count(Count::removes, removed);
    return removed;
  }

  std::uint64_t clear() override {
    check_open();
    std::uint64_t removed = 0;
    for (std::uint32_t e = 0; e < context_.sb().extents; ++e) {
      const ExtentControl& control = context_.control->extent(e);
      if (!control.owned) continue;
      for (std::uint32_t i = 0; i < control.slots; ++i) {
        const std::uint32_t slot = context_.pool->first_slot(e) + i;
        HotDescriptor hot;
        if (!read_hot<V>(context_.pool->hot(slot), hot) || !is_state(hot.word)) continue;
        if (state_of(hot.word) == SlotState::ready) removed += remove_slot(slot, hot.word, print_of(hot));
      }
    }
    context_.count(Count::removes, removed);
    slots_.release_empty();
    return removed;
  }

  std::uint64_t evict(std::uint64_t bytes) override {
    check_open();
    return eviction_.evict_bytes(bytes);
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
  static constexpr int kLaneAttempts = 16;
  static constexpr int kRemoveTries = 200;

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

  bool still_ours() const {
    const Superblock* shared = context_.pool->shared_superblock();
    V::observe(shared, kLine);
    V::observe_fence();
    return V::load(&shared->magic) == kMagic && V::load(&shared->epoch) == context_.sb().epoch;
  }

  /// Makes a written slot a chunk. G2 holds from its return on.
  PutResult publish(const Slot& slot, const Fingerprint& print, std::span<const std::byte> record,
                    std::span<const std::byte> meta, std::uint64_t size, std::uint32_t depth,
                    std::shared_ptr<Lease>* lease) {
    const PoolMemory& pool = *context_.pool;
    HotDescriptor* line = pool.hot(slot.number);
    const std::uint64_t writing = make_word(slot.generation, context_.process, SlotState::writing);
    if (V::load(&line->word) != writing) {
      throw Error(ErrorKind::invalid_argument, "the reservation was already committed or aborted");
    }
    try {
      check_record(record, meta);
      if (size < 1 || size > slot.capacity) {
        throw Error(ErrorKind::invalid_argument, "a chunk of " + std::to_string(size) +
                                                     " bytes was reserved with " + std::to_string(slot.capacity));
      }
      if (!still_ours()) {
        shut(kFormatted);
        check_open();
      }
    } catch (...) {
      slots_.abandon(slot.number, slot.generation);
      throw;
    }
    if (index_.find_one(print)) {  // somebody was faster
      slots_.abandon(slot.number, slot.generation);
      context_.count(Count::duplicates);
      return PutResult::duplicate;
    }

    HotDescriptor hot{};
    hot.word = writing;
    hot.print_lo = print.lo;
    hot.print_hi = print.hi;
    hot.size = size;
    hot.offset = slot.offset;
    hot.record_bytes = static_cast<std::uint16_t>(record.size());
    hot.meta_bytes = static_cast<std::uint16_t>(meta.size());
    hot.born = context_.tick();
    hot.depth = depth;
    std::vector<std::byte> cold((record.size() + meta.size() + 7) / 8 * 8);
    std::memcpy(cold.data(), record.data(), record.size());
    if (!meta.empty()) std::memcpy(cold.data() + record.size(), meta.data(), meta.size());
    hot.crc = descriptor_crc(slot.number, hot, {cold.data(), record.size() + meta.size()});
    store_words<V>(pool.cold(slot.number), cold.data(), cold.size());
    V::publish(pool.cold(slot.number), cold.size());
    store_words<V>(reinterpret_cast<std::byte*>(line) + 8, reinterpret_cast<const std::byte*>(&hot) + 8,
                   sizeof(hot) - 8);
    V::publish(line, kLine);

    // The entry goes first: while the slot is WRITING it leads nowhere, and room in the lane is certain before
    // the chunk exists. A process killed here leaves a WRITING slot, whose sweep removes the entry.
    bool entered = index_.insert(print, slot.number);
    for (int i = 0; !entered && i < kLaneAttempts && eviction_.clear_lane(print); ++i) {
      entered = index_.insert(print, slot.number);
    }
    if (!entered) {
      slots_.abandon(slot.number, slot.generation);
      context_.count(Count::refused_leased);
      return PutResult::refused;
    }
    if (lease) *lease = leases_.hold_unpublished(print, slot.number, writing);
    publish_word<V>(line, make_word(slot.generation, 0, SlotState::ready));
    if (pool.faulted()) {
      shut(kTruncated);
      return PutResult::refused;
    }
    context_.count(Count::puts);
    context_.count(Count::put_bytes, size);
    if (lease && *lease) leases_.complete(*lease);
    return PutResult::stored;
  }

  /// Takes a chunk out of the index now; its slot is free at once, or when its leases have ended.
  bool remove_slot(std::uint32_t slot, std::uint64_t word, const Fingerprint& print) {
    if (state_of(word) != SlotState::ready) return false;
    bool leased = false;
    if (eviction_.close(slot, word, true, leased)) {
      return slots_.finish(slot, eviction_.closing_word(word)) || doom(slot, word, print);
    }
    return leased && doom(slot, word, print);
  }

  bool doom(std::uint32_t slot, std::uint64_t word, const Fingerprint& print) {
    index_.remove(print, slot);
    slots_.doomed().add(slot, eviction_.closing_word(word));
    return true;
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
    if (!still_ours()) {
      shut(kFormatted);
      return;
    }
    ControlHeader& header = context_.header();
    const std::uint64_t now = boot_ms();
    const std::uint64_t last = V::load(&header.last_beat);
    if (now > last + context_.options.dead_after_ms / 2) {
      // Others may have judged this host dead meanwhile, and evicted what it leased: all its leases are void,
      // for good and before anybody hears from it again.
      V::exchange_if(&header.lease_epoch, V::load(&header.lease_epoch), V::load(&header.lease_epoch) + 1);
      std::atomic_thread_fence(std::memory_order_seq_cst);
    }
    if (now > last && V::exchange_if(&header.last_beat, last, now)) publish_heartbeat(now);
    leases_.renew();
    lapse_pins(now);
    upkeep_.retry_doomed();
    if (beats_++ % kSlowBeats == 0) {
      hosts_.refresh_active();
      sweep_dead();
      upkeep_.scrub(kScrubBudget);
      publish_counters();
      if (beats_ % (10 * kSlowBeats) == 1) slots_.retry_storage();
    }
  }

  void publish_heartbeat(std::uint64_t now) {
    HostHeartbeat& beat = context_.pool->host(context_.host)->heartbeat;
    V::store(&beat.incarnation, context_.header().incarnation);
    V::store(&beat.epoch, context_.sb().epoch);
    V::store(&beat.tick, context_.tick_at(now));
    V::publish(&beat, kLine);
  }

  void publish_counters() {
    HostPage& page = *context_.pool->host(context_.host);
    std::array<std::uint64_t, kCounts> sums{};
    totals(sums);
    store_words<V>(page.counters, sums.data(), sizeof(sums));
    V::publish(page.counters, sizeof(sums));
    std::uint32_t alive = 0;
    for (std::uint32_t p = 0; p < kMaxProcesses; ++p) alive += V::load(&context_.control->process(p).state) != 0;
    V::store(&page.heartbeat.processes, alive);
    V::publish(&page.heartbeat, kLine);
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
    if (!upkeep_.sweep(p + 1, timeout_ms) && p + 1 != context_.process) return;  // tried again later
    for (std::size_t c = 0; c < kCounts; ++c) {
      const auto what = static_cast<Count>(c);
      context_.header().departed.add(what, entry.counters.get(what));
      V::store(&entry.counters.values[c], std::uint64_t{0});
    }
    if (p + 1 != context_.process) context_.count(Count::swept_processes);  // not one that leaves in order
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
      const bool whole = !context_.pool->faulted() && !context_.control->faulted() && still_ours();
      if (whole) leases_.drop_all();
      const int fd = context_.control->fd();
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
      const auto lock = RangeLock::take(fd, kInitLockByte, LockMode::exclusive, deadline);
      if (lock && whole) bury(context_.process - 1, slots_.patience());
      bool last = static_cast<bool>(lock);
      for (std::uint32_t p = 0; last && p < kMaxProcesses; ++p) {
        if (p + 1 != context_.process) last = !held_by_other(fd, kProcessLockByte + p);
      }
      if (last && context_.control->linked()) unlink(context_.control->path().c_str());
      member_.alive.release();
      member_.attached.release();
    } catch (const std::exception&) {
      // The locks go with the descriptors, and the next process sweeps what was left.
      member_.alive.release();
      member_.attached.release();
    }
  }

  static constexpr std::uint64_t kSlowBeats = 5;
  static constexpr std::uint32_t kScrubBudget = 512;

  Membership member_;
  HostContext context_;
  Index<V> index_;
  Hosts<V> hosts_;
  Leases<V> leases_;
  Extents<V> extents_;
  Slots<V> slots_;
  Eviction<V> eviction_;
  Upkeep<V> upkeep_;
  Walk<V> walk_;
  CopyEngine copier_;

  mutable std::mutex pins_mutex_;
  std::unordered_map<Fingerprint, Pin, PrintHash> pins_;
  std::uint64_t pin_count_ = 0;

  std::atomic<std::uint64_t> outstanding_{0};  // slots reserved and neither published nor abandoned
  mutable std::atomic<bool> closed_{false};
  mutable std::mutex reason_mutex_;
  mutable std::string reason_;

  std::mutex beat_mutex_;
  std::condition_variable beat_wake_;
  bool stopping_ = false;
  std::uint64_t beats_ = 0;
  std::thread heartbeat_;
};

}  // namespace beluga
