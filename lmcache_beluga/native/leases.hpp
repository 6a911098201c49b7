#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#endif

#include "errors.hpp"
#include "hosts.hpp"
#include "index.hpp"

namespace beluga {

/// A claim of this process that a chunk must not be reused. Shared by all views and pins of the chunk.
struct Lease {
  std::uint32_t slot = 0;
  std::uint64_t generation = 0;
  Fingerprint print;
  std::uint64_t epoch = 0;                // lease epoch it was made under
  std::atomic<std::uint64_t> expiry{0};   // now_ms; this process trusts nothing from then on
  std::atomic<bool> lost{false};
  std::uint32_t holders = 0;              // guarded by Leases' mutex

  std::uint64_t size = 0;    // bytes of payload; 0: nothing is known of the chunk yet
  std::uint64_t offset = 0;  // from the extent's start
  std::uint64_t checksum = 0;  // payload_checksum(); 0: stored without
  std::uint32_t record_bytes = 0;
  std::uint32_t meta_bytes = 0;

  std::span<const std::byte> record() const noexcept { return {cold(), record_bytes}; }
  std::span<const std::byte> meta() const noexcept { return {cold() + record_bytes, meta_bytes}; }
  /// Room for the cold lines: nearly all fit into the lease itself.
  std::byte* make_cold(std::size_t bytes) {
    if (bytes > sizeof(inline_cold_)) large_cold_ = std::make_unique<std::byte[]>(bytes);
    return large_cold_ ? large_cold_.get() : inline_cold_;
  }

 private:
  const std::byte* cold() const noexcept { return large_cold_ ? large_cold_.get() : inline_cold_; }

  alignas(8) std::byte inline_cold_[256];
  std::unique_ptr<std::byte[]> large_cold_;
};

/// This process's leases. Lookups and leases lock nothing that another process could hold; the mutex here is
/// among the threads of one process.
///
/// Several processes of a host may lease one slot; the host has one stamp for it. Bit p of the slot's lease
/// mask in the control block says that process p holds it. Every process that begins to hold raises the stamp
/// to a value it did not have before. Whoever ends as the last swaps its bit for a lowering bit, lowers the
/// stamp by compare-and-swap from the value it saw first, and clears the lowering bit. Nobody else lowers
/// meanwhile, so the stamp can only have grown, and a lowering that comes late, when somebody has begun to hold,
/// fails.
template <class V>
class Leases {
 public:
  Leases(HostContext& context, Index<V>& index, Hosts<V>& hosts)
      : context_(context),
        pool_(*context.pool),
        index_(index),
        hosts_(hosts),
        reserved_(context.pool->sb().extents) {}

  /// Leases keys in order, up to the first miss if `stop_at_miss`. `out[i]` is null for a miss. `records` gives
  /// each key's record: a fingerprint collision is a miss.
  template <class RecordOf>
  void acquire(std::span<const Fingerprint> prints, RecordOf&& record_of, bool stop_at_miss,
               std::vector<std::shared_ptr<Lease>>& out) {
    out.assign(prints.size(), nullptr);
    std::vector<Found> found(prints.size());
    const std::size_t n = index_.find(prints, found, stop_at_miss);
    bool closing = false;
    {
      const std::lock_guard guard(mutex_);
      hold(prints, std::span(found).first(n), out);
      closing = observe(prints, record_of, std::span(found).first(n), out);
    }
    // A chunk that was closing may stay: its evictor gives up when it sees a lease, or it is gone for good.
    for (int i = 0; closing && i < kClosingRetries; ++i) {
      closing = false;
      for (std::size_t k = 0; k < n; ++k) {
        if (out[k] || !found[k] || state_of(found[k].word) != SlotState::closing) continue;
        found[k] = index_.find_one(prints[k]);
        if (!found[k]) continue;
        const std::lock_guard guard(mutex_);
        hold(prints.subspan(k, 1), std::span(found).subspan(k, 1), std::span(out).subspan(k, 1));
        closing |= observe(
            prints.subspan(k, 1), [&](std::size_t) { return record_of(k); }, std::span(found).subspan(k, 1),
            std::span(out).subspan(k, 1));
      }
    }
    for (const auto& lease : out) {
      if (lease) freshen_payload(*lease);
    }
    if (stop_at_miss) {
      bool missed = false;
      for (auto& lease : out) {
        missed |= !lease;
        if (missed && lease) release(lease);
        if (missed) lease = nullptr;
      }
    }
  }

  /// Leases a slot that this process is about to publish: the stamp comes before READY, so that nobody can
  /// evict the chunk in between. Null when the host's stamps have no storage.
  std::shared_ptr<Lease> hold_unpublished(const Fingerprint& print, std::uint32_t slot, std::uint64_t word) {
    const Found found{slot, word};
    std::shared_ptr<Lease> lease;
    const std::lock_guard guard(mutex_);
    hold({&print, 1}, {&found, 1}, {&lease, 1});
    return lease;
  }

  /// Completes such a lease once the slot is READY.
  void complete(std::shared_ptr<Lease>& lease) {
    Found found{lease->slot, 0};
    const Fingerprint print = lease->print;
    const std::lock_guard guard(mutex_);
    observe({&print, 1}, [](std::size_t) { return std::span<const std::byte>{}; }, {&found, 1}, {&lease, 1});
  }

  /// Gives one hold back. Local, cannot fail.
  void release(const std::shared_ptr<Lease>& lease) { release({&lease, 1}); }
  void release(std::span<const std::shared_ptr<Lease>> leases) {
    const std::lock_guard guard(mutex_);
    for (const auto& lease : leases) release_locked(lease);
  }

  /// May a transfer under this lease go on, as far as this process can tell without a look at the pool?
  bool usable(const Lease& lease) const noexcept { return usable(lease, moment()); }

  /// Is the chunk untouched since it was leased? Asked after every transfer. A lost lease is counted once.
  bool valid(Lease& lease) {
    if (lease.lost.load(std::memory_order_acquire)) return false;
    // SYNC POINT: freed (with Slots::free_slot): whoever writes the slot anew has confirmed its next generation.
    const HotDescriptor* line = pool_.hot(lease.slot);
    observe_hot(Point::freed, lease.slot);
    const std::uint64_t word = V::load(&line->word);
    const Fingerprint print{V::load(&line->print_lo), V::load(&line->print_hi)};
    const bool same = generation_of(word) == lease.generation && print == lease.print &&
                      (state_of(word) == SlotState::ready || state_of(word) == SlotState::closing);
    if (same && usable(lease) && !pool_.faulted()) return true;
    lose(lease);
    return false;
  }

  /// Prolongs what has used up half its time. Called by the heartbeat.
  void renew() {
    const std::lock_guard guard(mutex_);
    const std::uint64_t now = context_.now_ms();
    const std::uint64_t epoch = V::load(&context_.header().lease_epoch);
    if (context_.late()) return;
    std::vector<Lease*> renewed;
    std::vector<Place> stamps;
    for (auto& [slot, lease] : held_) {
      if (lease->lost.load(std::memory_order_acquire) ||
          lease->expiry.load(std::memory_order_acquire) > now + context_.options.lease_ms / 2) {
        continue;
      }
      if (lease->epoch != epoch) {
        lose(*lease);
      } else if (begin_renewal(*lease, now + context_.options.lease_ms, stamps)) {
        renewed.push_back(lease.get());
      }
    }
    // SYNC POINT: renewal (with slot_use)
    V::confirm_all(stamps);
    for (Lease* lease : renewed) end_renewal(*lease, now + context_.options.lease_ms);
  }

  std::uint64_t count() {
    const std::lock_guard guard(mutex_);
    return held_.size();
  }

  /// Gives everything back, whoever holds it. Called at detach.
  void drop_all() {
    const std::lock_guard guard(mutex_);
    while (!held_.empty()) {
      const std::shared_ptr<Lease> lease = held_.begin()->second;
      lease->lost.store(true, std::memory_order_release);
      let_go(lease);
    }
  }

  /// Takes a dead process out of a slot's mask, and ends the host's lease if it was the last.
  void forget_process(std::uint32_t slot, std::uint32_t process) {
    std::uint64_t* mask = context_.control->lease_mask(slot);
    if (V::load(mask) & lowering_bit(process)) V::fetch_and(mask, ~lowering_bit(process));
    if (V::load(mask) & bit(process)) give_back(slot, process);
  }

  /// Raises a slot's recency to now, without leasing it.
  void touch(std::uint32_t slot) {
    reserve(slot);
    std::uint32_t* stamp = pool_.stamp(context_.host, slot);
    for (int i = 0; i < kStampRetries; ++i) {
      const std::uint32_t old = V::load(stamp);
      const std::uint32_t now = context_.published_tick();
      if (old != 0 && static_cast<std::int32_t>(old - now) >= 0) return;  // leased, or as recent
      if (V::exchange_if(stamp, old, now)) break;
    }
    V::write_back_soon(Point::stamp_lowered, stamp);
  }

 private:
  static constexpr int kClosingRetries = 8;
  static constexpr std::size_t kColdAhead = 3 * kLine;  // cold lines that nearly all records fit into
  static constexpr int kStampRetries = 64;

  /// What a lease's use depends on besides the lease, looked at once for many.
  struct Moment {
    std::uint64_t now;
    std::uint64_t epoch;
    bool late;
  };

  Moment moment() const noexcept {
    const std::uint64_t now = context_.now_ms();
    const std::uint64_t epoch = V::load(&context_.header().lease_epoch);
    return {now, epoch, context_.late()};
  }

  static bool usable(const Lease& lease, const Moment& moment) noexcept {
    return !lease.lost.load(std::memory_order_acquire) &&
           moment.now < lease.expiry.load(std::memory_order_acquire) && lease.epoch == moment.epoch && !moment.late;
  }

  static std::uint64_t bit(std::uint32_t process) { return std::uint64_t{1} << (process - 1); }
  static std::uint64_t lowering_bit(std::uint32_t process) { return bit(process) << kMaxProcesses; }

  /// Storage for stamps and masks of slots that this process has not leased before: touching a hole of a full
  /// tmpfs would be fatal.
  void reserve(std::uint32_t slot) {
    const std::uint32_t extent = pool_.extent_of(slot);
    if (reserved_[extent].load(std::memory_order_acquire)) return;
    const std::uint32_t per_extent = pool_.sb().slots_per_extent;
    pool_.reserve_stamps(context_.host, extent, per_extent);
    context_.control->reserve_slots(pool_.first_slot(extent), per_extent);
    reserved_[extent].store(true, std::memory_order_release);
  }

  /// First half of a lease: writes the stamps, confirmed.
  void hold(std::span<const Fingerprint> prints, std::span<const Found> found,
            std::span<std::shared_ptr<Lease>> out) {
    const std::uint64_t now = context_.now_ms();
    for (const Found& f : found) {
      if (!f) continue;
      V::prefetch(pool_.stamp(context_.host, f.slot));
      V::prefetch(context_.control->lease_mask(f.slot));
    }
    const std::uint64_t epoch = V::load(&context_.header().lease_epoch);
    // A stamp that is written while others may take this host for dead claims nothing.
    // SYNC POINT: heartbeat, which has to be on the device before the stamp.
    if (context_.late()) return;
    std::vector<Lease*> prolonged;
    std::vector<Place> stamps;
    stamps.reserve(found.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (!found[i]) continue;
      const std::uint64_t generation = generation_of(found[i].word);
      std::shared_ptr<Lease>& held = held_[found[i].slot];
      if (held && held->generation == generation && held->print == prints[i] && held->epoch == epoch &&
          !held->lost.load(std::memory_order_acquire) && held->expiry.load(std::memory_order_acquire) > now) {
        // The heartbeat is late. Others read under this lease: it is prolonged, not replaced.
        if (held->expiry.load(std::memory_order_acquire) <= now + context_.options.lease_ms / 4 &&
            begin_renewal(*held, now + context_.options.lease_ms, stamps)) {
          prolonged.push_back(held.get());
        }
        ++held->holders;
        out[i] = held;
        continue;
      }
      // The lookup is from before the slot's last chunk went, and another thread has leased the one that came after.
      // What was found is gone, but the stamp is in use.
      if (held && held->generation > generation) continue;
      if (held) lose(*held);  // an earlier chunk of this slot, or a lease that ran out
      try {
        reserve(found[i].slot);
      } catch (const Error&) {
        context_.count(Count::refused_no_space);
        if (!held) held_.erase(found[i].slot);
        continue;
      }
      auto lease = std::make_shared<Lease>();
      lease->slot = found[i].slot;
      lease->generation = generation;
      lease->print = prints[i];
      lease->epoch = epoch;
      lease->holders = 1;
      V::fetch_or(context_.control->lease_mask(found[i].slot), bit(context_.process));
      const std::uint64_t expiry = now + context_.options.lease_ms;
      if (!raise(found[i].slot, expiry)) {
        give_back(found[i].slot, context_.process);
        held_.erase(found[i].slot);
        continue;
      }
      lease->expiry.store(expiry, std::memory_order_release);
      // The evictor of an own chunk is of this host: it sees the stamp as soon as the exchange is done.
      if (V::mode == VisibilityMode::coherent || !context_.owns(found[i].slot)) {
        stamps.push_back({Point::stamp, pool_.stamp(context_.host, found[i].slot)});
      }
      held = lease;
      out[i] = std::move(lease);
    }
    // SYNC POINT: stamp (with slot_use after CLOSING, confirmed by Eviction::close). Dekker's pattern: either the
    // evictor sees the stamp, or the observation that follows sees CLOSING.
    V::confirm_all(stamps);
    for (Lease* lease : prolonged) end_renewal(*lease, now + context_.options.lease_ms);
  }

  /// Second half: only a descriptor observed after the stamp was confirmed makes a lease. Returns whether some
  /// chunk was found closing.
  template <class RecordOf>
  bool observe(std::span<const Fingerprint> prints, RecordOf&& record_of, std::span<Found> found,
               std::span<std::shared_ptr<Lease>> out) {
    bool foreign = false;
    for (const auto& lease : out) {
      if (!lease || (V::mode == VisibilityMode::noncoherent && context_.owns(lease->slot))) continue;
      V::observe(Point::closing, pool_.hot(lease->slot), kLine);
      if (lease->size == 0) V::observe(Point::record, pool_.cold(lease->slot), kColdAhead);
      foreign = true;
    }
    if (foreign) V::observe_fence(Point::closing);
    bool closing = false;
    for (std::size_t i = 0; i < found.size(); ++i) {
      if (!out[i]) continue;
      Lease& lease = *out[i];
      HotDescriptor hot;
      const bool read = read_hot<V>(pool_.hot(lease.slot), hot);
      bool good = read && generation_of(hot.word) == lease.generation && print_of(hot) == prints[i] &&
                  state_of(hot.word) == SlotState::ready;
      if (read && is_state(hot.word) && state_of(hot.word) == SlotState::closing) closing = true;
      found[i].word = read ? hot.word : found[i].word;
      if (good && lease.size == 0) good = learn(lease, hot);
      if (good) {
        const std::span<const std::byte> wanted = record_of(i);
        // The record is the key; the fingerprint only finds it.
        good = wanted.empty() || (wanted.size() == lease.record_bytes &&
                                  std::memcmp(wanted.data(), lease.record().data(), wanted.size()) == 0);
      }
      if (!good) drop(out[i]);
    }
    // After all of them were observed: a lease that is usable now was so then.
    const Moment after = moment();
    for (auto& lease : out) {
      if (lease && !usable(*lease, after)) drop(lease);
    }
    return closing;
  }

  void drop(std::shared_ptr<Lease>& lease) {
    release_locked(lease);
    lease = nullptr;
  }

  /// Copies the descriptor's contents into a new lease, validated.
  bool learn(Lease& lease, const HotDescriptor& hot) {
    const std::size_t bytes = cold_words(hot);
    if (hot.record_bytes + std::size_t{hot.meta_bytes} > pool_.sb().record_bytes) {
      context_.count(Count::garbage);
      return false;
    }
    if (bytes > kColdAhead && !context_.owns(lease.slot)) {
      V::observe(Point::record, pool_.cold(lease.slot) + kColdAhead, bytes - kColdAhead);
      V::observe_fence(Point::record);
    }
    const ReadResult result = read_cold<V>(pool_, lease.slot, hot, {lease.make_cold(bytes), bytes});
    if (result != ReadResult::ok) {
      if (result == ReadResult::garbage) context_.count(Count::garbage);
      return false;
    }
    lease.size = hot.size;
    lease.offset = hot.offset;
    lease.checksum = hot.checksum;
    lease.record_bytes = hot.record_bytes;
    lease.meta_bytes = hot.meta_bytes;
    return true;
  }

  /// Drops what this host's caches hold of the payload of an earlier chunk. Once for each chunk and host: from then
  /// on nothing older can come back. A chunk that this host wrote passed through its own coherent caches.
  /// SYNC POINT: payload (with Publication), after READY was observed
  void freshen_payload(const Lease& lease) const {
    if constexpr (V::mode == VisibilityMode::noncoherent) {
      std::uint64_t* fresh = context_.control->fresh_generation(lease.slot);
      const std::uint64_t mark = lease.generation + 1;  // 0: none
      if (V::load(fresh) == mark) return;
      V::observe_payload(pool_.payload(pool_.extent_of(lease.slot)) + lease.offset, lease.size,
                         context_.payload_cached());
      if (context_.payload_cached()) context_.count(Count::flushed_bytes, lease.size);
      V::store(fresh, mark);
    }
  }

  void observe_hot(Point point, std::uint32_t slot) const {
    if (V::mode == VisibilityMode::noncoherent && context_.owns(slot)) return;
    V::observe(point, pool_.hot(slot), kLine);
    V::observe_fence(point);
  }

  /// Raises this host's stamp of a slot to the tick of `expiry`, or one more than it was: always to a new value.
  bool raise(std::uint32_t slot, std::uint64_t expiry) {
    std::uint32_t* stamp = pool_.stamp(context_.host, slot);
    // As the others see it: the tick they know of lags by as much as half of dead_after.
    const std::uint32_t tick = context_.published_tick();
    const std::uint32_t wanted = context_.tick_at(expiry);
    for (int i = 0; i < kStampRetries; ++i) {
      const std::uint32_t old = V::load(stamp);
      std::uint32_t value = wanted;
      if (stamp_is_live(old, tick, pool_.sb().max_lease_ms) &&
          static_cast<std::int32_t>(old - wanted) >= 0) {
        value = old + 1 == 0 ? 1 : old + 1;
      }
      if (!stamp_is_live(value, tick, pool_.sb().max_lease_ms)) return false;
      if (V::exchange_if(stamp, old, value)) return true;
    }
    return false;
  }

  /// Raises the stamp of a lease, which `stamps` is to confirm before end_renewal(). False: there is none to raise.
  bool begin_renewal(const Lease& lease, std::uint64_t expiry, std::vector<Place>& stamps) {
    if (!raise(lease.slot, expiry)) return false;
    stamps.push_back({Point::renewal, pool_.stamp(context_.host, lease.slot)});
    return true;
  }

  /// The stamp has been raised and confirmed. Too late to prolong, it is a new lease, and the descriptor has to be
  /// seen after it.
  void end_renewal(Lease& lease, std::uint64_t expiry) {
    if (context_.now_ms() >= lease.expiry.load(std::memory_order_acquire) && V::on(Point::renewal, Step::check)) {
      observe_hot(Point::renewal, lease.slot);
      const std::uint64_t word = V::load(&pool_.hot(lease.slot)->word);
      if (generation_of(word) != lease.generation || state_of(word) != SlotState::ready) {
        lose(lease);
        return;
      }
    }
    lease.expiry.store(expiry, std::memory_order_release);
  }

  void lose(Lease& lease) {
    if (!lease.lost.exchange(true, std::memory_order_acq_rel)) context_.count(Count::lost_leases);
  }

  void release_locked(const std::shared_ptr<Lease>& lease) {
    if (lease->holders == 0 || --lease->holders != 0) return;
    let_go(lease);
  }

  void let_go(const std::shared_ptr<Lease>& lease) {
    const auto it = held_.find(lease->slot);
    if (it == held_.end() || it->second != lease) return;  // the slot has a newer lease
    const std::uint32_t slot = lease->slot;
    held_.erase(it);
    give_back(slot, context_.process);
  }

  /// Clears a process's bit; as the last one, lowers the stamp to the last published tick: no lease any more in
  /// anybody's eyes, and the slot's recency.
  void give_back(std::uint32_t slot, std::uint32_t process) {
    std::uint64_t* mask = context_.control->lease_mask(slot);
    std::uint32_t* stamp = pool_.stamp(context_.host, slot);
    const std::uint32_t seen = V::load(stamp);
    std::uint64_t before = __atomic_load_n(mask, __ATOMIC_SEQ_CST);
    std::uint64_t after = 0;
    do {
      after = before == bit(process) ? lowering_bit(process) : before & ~bit(process);
    } while (!__atomic_compare_exchange_n(mask, &before, after, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
#ifdef __SANITIZE_THREAD__
    // In a test, processes are handles that map the control block once each: ThreadSanitizer takes its mask for as many
    // memories, and does not see that whoever goes last comes after the others.
    __tsan_acquire(stamp);
    __tsan_release(stamp);
#endif
    if (after != lowering_bit(process)) return;
    // SYNC POINT: stamp_lowered (with slot_use)
    if (V::exchange_if(stamp, seen, context_.published_tick())) V::write_back_soon(Point::stamp_lowered, stamp);
    V::fetch_and(mask, ~lowering_bit(process));
  }

  HostContext& context_;
  const PoolMemory& pool_;
  Index<V>& index_;
  Hosts<V>& hosts_;
  typename V::Mutex mutex_;
  // What one thread makes and another ends would go from one arena of malloc to another's.
  std::pmr::unsynchronized_pool_resource nodes_;
  std::pmr::unordered_map<std::uint32_t, std::shared_ptr<Lease>> held_{&nodes_};
  std::vector<std::atomic<bool>> reserved_;  // by extent
};

}  // namespace beluga
