#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "doomed.hpp"
#include "errors.hpp"
#include "extents.hpp"
#include "index.hpp"

namespace beluga {

/// Why a chunk got no slot.
enum class Refusal { none, leased, no_space, busy };

/// A slot in state WRITING that this process may fill.
struct Slot {
  std::uint32_t number = 0;
  std::uint64_t generation = 0;
  std::uint64_t capacity = 0;  // bytes
  std::uint64_t offset = 0;    // from the extent's start
  std::byte* address = nullptr;
};

/// The slots of this host's extents: which are free, taking and freeing them. Who makes room when none is free is
/// Eviction.
template <class V>
class Slots {
 public:
  Slots(HostContext& context, Index<V>& index, Extents<V>& extents)
      : context_(context),
        pool_(*context.pool),
        control_(*context.control),
        index_(index),
        extents_(extents) {}

  /// The slot lock, for the life of the object; repairs first what a dead holder left undone.
  class Locked {
   public:
    explicit Locked(Slots& slots) : Locked(slots, slots.patience()) {}
    Locked(Slots& slots, std::uint32_t timeout_ms) : mutex_(slots.context_.header().slots) {
      const LockResult result = V::lock(mutex_, timeout_ms);
      held_ = result != LockResult::timed_out;
      if (held_ || timeout_ms == slots.context_.options.lock_timeout_ms) slots.stuck_ = !held_;
      if (result == LockResult::owner_died) slots.repair();
    }
    ~Locked() {
      if (held_) V::unlock(mutex_);
    }
    Locked(const Locked&) = delete;
    Locked& operator=(const Locked&) = delete;
    explicit operator bool() const noexcept { return held_; }

   private:
    RobustMutex& mutex_;
    bool held_;
  };

  /// How long to wait for the slot lock. One operation may want it many times: once its holder has turned out to
  /// be stopped, nobody here waits for it again until it has been had.
  std::uint32_t patience() const noexcept {
    const std::uint32_t whole = context_.options.lock_timeout_ms;
    return stuck_ ? std::min(whole, kBriefMs) : whole;
  }

  /// The heartbeat's: leases must be renewed meanwhile.
  static constexpr std::uint32_t kBriefMs = 1;

  /// Into how many slots an extent is cut for chunks of `size` bytes. Throws chunk_too_large.
  std::uint32_t cut_for(std::uint64_t size) const {
    const std::uint32_t cut = slots_for(pool_.sb(), size);
    if (cut == 0) {
      throw Error(ErrorKind::chunk_too_large,
                  "a chunk of " + std::to_string(size) + " bytes does not fit into an extent of " +
                      std::to_string(pool_.sb().extent_size) +
                      " bytes: format the pool with a larger --extent-size (beluga.extent_size)");
    }
    return cut;
  }

  /// Takes a free slot of the right cut, on the device after the last one's if it has one or an extent to cut, so
  /// that consecutive chunks can be read from all devices at once. Under the lock.
  bool take(std::uint32_t cut, Slot& slot, Refusal& refusal) {
    const std::uint32_t devices = pool_.sb().device_count;
    const std::uint32_t start = rotor_++;
    for (std::uint32_t d = 0; d < devices; ++d) {
      const std::uint32_t device = (start + d) % devices;
      if (take_on(device, cut, slot, refusal)) return true;
      if (claim_on(device, cut, refusal) && take_on(device, cut, slot, refusal)) return true;
    }
    return false;
  }

  /// Returns a WRITING slot of this process that was not published. False when it was not its any more.
  bool abandon(std::uint32_t slot, std::uint64_t generation) {
    HotDescriptor* line = pool_.hot(slot);
    const std::uint64_t word = make_word(generation, context_.process, SlotState::writing);
    if (V::load(&line->word) != word) {
      written(slot);
      return false;
    }
    Locked lock(*this);
    if (!lock) {
      doomed_.add(slot, word);  // the lock's holder is stopped: tried again at each heartbeat
      return false;
    }
    index_.remove({V::load(&line->print_lo), V::load(&line->print_hi)}, slot);
    free_slot(slot, generation);
    return true;
  }

  /// Ends a slot's life: entry away, generation + 1, free. The slot is CLOSING without leases, or WRITING, by this
  /// process; false when it is not (any more), or when the lock cannot be had.
  bool finish(std::uint32_t slot, std::uint64_t word) { return finish(slot, word, patience()); }
  bool finish(std::uint32_t slot, std::uint64_t word, std::uint32_t timeout_ms) {
    Locked lock(*this, timeout_ms);
    if (!lock || V::load(&pool_.hot(slot)->word) != word || in_other_hands(slot, word)) return false;
    finish_locked(slot, generation_of(word));
    return true;
  }

  void finish_locked(std::uint32_t slot, std::uint64_t generation) {
    const HotDescriptor* line = pool_.hot(slot);
    index_.remove({V::load(&line->print_lo), V::load(&line->print_hi)}, slot);
    free_slot(slot, generation);
  }

  /// This process will not write to a slot any more that it has reserved.
  void written(std::uint32_t slot) const { V::exchange_if(control_.writer(slot), own_number(), std::uint8_t{0}); }

  /// Is a living process writing to the slot although the descriptor, whose word this is, says something else? That
  /// is damage, and nobody else may have the slot until its writer is done.
  bool in_other_hands(std::uint32_t slot, std::uint64_t word) const {
    const std::uint32_t writer = V::load(control_.writer(slot));
    if (writer == 0 || (state_of(word) == SlotState::writing && process_of(word) == writer)) return false;
    return writer <= kMaxProcesses && V::load(&control_.process(writer - 1).state) != 0;
  }

  /// Frees a slot whatever its state. Under the lock.
  void free_slot(std::uint32_t slot, std::uint64_t generation) {
    ControlHeader& header = context_.header();
    const std::uint32_t e = pool_.extent_of(slot);
    V::store(&header.intent, slot + 1);
    // SYNC POINT: freed (with Leases::valid): before the slot can be written again.
    const std::uint64_t next = generation + (V::on(Point::freed, Step::check) ? 1 : 0);
    publish_word<V>(Point::freed, pool_.hot(slot), make_word(next, 0, SlotState::free));
    V::store(control_.writer(slot), std::uint8_t{0});
    set_free(e, slot - pool_.first_slot(e), true);
    V::store(&header.intent, std::uint32_t{0});
  }

  bool is_free(std::uint32_t extent, std::uint32_t i) const {
    return __atomic_load_n(&control_.free_map(extent)[i / 64], __ATOMIC_RELAXED) >> (i % 64) & 1;
  }

  /// Marks a slot in the free map to match its descriptor. Under the lock. A slot that the extent is not cut into,
  /// which only damage leads to, is nothing that anybody may take.
  void set_free(std::uint32_t extent, std::uint32_t i, bool free) {
    ExtentControl& control = control_.extent(extent);
    if (i >= control.slots) return;
    std::uint64_t& word = control_.free_map(extent)[i / 64];
    const std::uint64_t bit = std::uint64_t{1} << (i % 64);
    if (((word & bit) != 0) == free) return;
    __atomic_fetch_xor(&word, bit, __ATOMIC_RELAXED);
    control.free = control.free + (free ? 1 : ~0u);
    if (free && i / 64 < control.hint) control.hint = i / 64;
  }

  /// Gives every own extent without a chunk back, but at most `most`, and none that would be begun after
  /// `until_ms`, except the first. Returns how many.
  std::uint32_t release_empty(std::uint32_t most = ~0u, std::uint64_t until_ms = ~std::uint64_t{0}) {
    std::uint32_t released = 0;
    for (std::uint32_t e = 0; e < pool_.sb().extents && released < most; ++e) {
      if (released && context_.now_ms() >= until_ms) break;
      const ExtentControl& control = control_.extent(e);
      if (control.owned && control.free == control.slots) released += release(e);
    }
    return released;
  }

  /// Gives an own extent back if it holds nothing. To write back and to free what may be a gigabyte takes long, so
  /// both happen without the slot lock, while nobody takes a slot of the extent.
  bool release(std::uint32_t e) {
    Draining mine(*this, e);
    const ExtentControl& control = control_.extent(e);
    if (!mine || control.free != control.slots) return false;
    extents_.flush(e);
    extents_.drop_storage(e);
    Locked lock(*this);
    // Whatever a sweep or a flipped bit made of it meanwhile: storage that is missing is asked for again.
    if (!lock || !mine || control.free != control.slots) return false;
    extents_.release(e);
    mine.ended();
    return true;
  }

  /// As long as it lives nobody takes a slot of an own extent, cuts it anew, or gives it up. False: it is not this
  /// host's, or somebody else is emptying it, maybe another thread of this process.
  class Draining {
   public:
    Draining(Slots& slots, std::uint32_t e)
        : control_(slots.control_.extent(e)), process_(static_cast<std::uint8_t>(slots.context_.process)) {
      Locked lock(slots);
      if (!lock || !control_.owned || control_.draining) return;
      control_.draining = process_;
      held_ = true;
    }
    // Without the lock: it must not stay even if the lock cannot be had.
    ~Draining() {
      if (held_) V::exchange_if(&control_.draining.value, process_, std::uint8_t{0});
    }
    /// The extent was given up, under the lock. Somebody else of this host may soon have it again, and drain it.
    void ended() noexcept { held_ = false; }
    Draining(const Draining&) = delete;
    Draining& operator=(const Draining&) = delete;
    explicit operator bool() const noexcept { return held_ && control_.owned && control_.draining == process_; }

   private:
    ExtentControl& control_;
    const std::uint8_t process_;
    bool held_ = false;
  };

  /// The next look for an unclaimed extent reads all claims afresh.
  void forget_unclaimed() {
    Locked lock(*this);
    if (lock) unclaimed_at_ = 0;
  }

  /// How many extents nobody claims.
  std::uint64_t unclaimed_extents() {
    Locked lock(*this);
    if (!lock) return 0;
    refresh_unclaimed();
    return unclaimed_.size();
  }

  /// Space may have come back to the file system.
  void retry_storage() {
    for (std::uint32_t e = 0; e < pool_.sb().extents; ++e) {
      ExtentControl& control = control_.extent(e);
      if (control.owned && control.full_disk) control.full_disk = 0;
    }
  }

  /// The own extents of each cut, by device, as of the last change. Per process.
  void refresh_owned() {
    const std::lock_guard guard(owned_mutex_);
    const std::uint64_t cuts = __atomic_load_n(&context_.header().cuts, __ATOMIC_ACQUIRE);
    if (cuts == owned_at_) return;
    owned_at_ = cuts;
    owned_.clear();
    owned_all_.clear();
    for (std::uint32_t e = 0; e < pool_.sb().extents; ++e) {
      const ExtentControl& control = control_.extent(e);
      if (!control.owned || control.slots == 0) continue;
      auto& devices = owned_[control.slots];
      devices.resize(pool_.sb().device_count);
      devices[pool_.device_of(e)].push_back(e);
      owned_all_.push_back(e);
    }
  }

  std::vector<std::uint32_t> all_owned() {
    const std::lock_guard guard(owned_mutex_);
    return owned_all_;
  }

  /// Own extents cut into `cut` slots, or into any other number.
  std::vector<std::uint32_t> owned_with(std::uint32_t cut, bool same) {
    const std::lock_guard guard(owned_mutex_);
    std::vector<std::uint32_t> extents;
    for (const auto& [slots, devices] : owned_) {
      if ((slots == cut) != same) continue;
      for (const auto& list : devices) extents.insert(extents.end(), list.begin(), list.end());
    }
    return extents;
  }

  /// Slots to be freed later.
  Doomed<typename V::Mutex>& doomed() noexcept { return doomed_; }

  /// What the file system said when it last refused storage.
  std::string last_no_space() const {
    const std::lock_guard guard(no_space_mutex_);
    return last_no_space_;
  }

 private:
  static constexpr std::uint64_t kReserveStep = 32 << 20;

  std::uint8_t own_number() const { return static_cast<std::uint8_t>(context_.process); }

  /// What a holder that died was in the middle of: the descriptor of its intended slot tells. Its unfinished
  /// claims are withdrawn.
  void repair() {
    ControlHeader& header = context_.header();
    const std::uint32_t intent = V::load(&header.intent);
    if (intent && context_.slot_in_range(intent - 1)) {
      const std::uint32_t slot = intent - 1;
      const std::uint32_t e = pool_.extent_of(slot);
      recount(e);
      if (control_.extent(e).owned && slot - pool_.first_slot(e) < control_.extent(e).slots) {
        const std::uint64_t word = V::load(&pool_.hot(slot)->word);
        set_free(e, slot - pool_.first_slot(e), is_state(word) && state_of(word) == SlotState::free);
      }
    }
    V::store(&header.intent, std::uint32_t{0});
    for (std::uint32_t e = 0; e < pool_.sb().extents; ++e) {
      const Claim claim = extents_.claim_of(context_.host, e);
      if (claim == Claim::none) continue;
      if (claim != Claim::owned) {
        extents_.publish_claim(e, Claim::none);
      } else if (!control_.extent(e).owned) {
        // Claimed, or being released, and not cut: an own extent without slots.
        control_.extent(e) = ExtentControl{};
        control_.extent(e).owned = 1;
      } else if (control_.extent(e).slots) {
        recount(e);
      }
    }
    __atomic_fetch_add(&header.cuts, 1, __ATOMIC_ACQ_REL);
    context_.count(Count::repaired);
  }

  void recount(std::uint32_t e) {
    std::uint32_t free = 0;
    for (std::uint32_t w = 0; w < control_.map_words(); ++w) {
      free += static_cast<std::uint32_t>(__builtin_popcountll(control_.free_map(e)[w]));
    }
    control_.extent(e).free = free;
    control_.extent(e).hint = 0;
  }

  bool take_on(std::uint32_t device, std::uint32_t cut, Slot& slot, Refusal& refusal) {
    refresh_owned();
    const std::lock_guard guard(owned_mutex_);
    const auto it = owned_.find(cut);
    if (it == owned_.end()) return false;
    for (const std::uint32_t e : it->second[device]) {
      if (take_in(e, cut, slot, refusal)) return true;
    }
    return false;
  }

  bool take_in(std::uint32_t e, std::uint32_t cut, Slot& slot, Refusal& refusal) {
    ExtentControl& control = control_.extent(e);
    if (!control.owned || control.slots != cut || control.draining || control.free == 0) return false;
    const std::uint64_t* map = control_.free_map(e);
    const std::uint32_t words = (cut + 63) / 64;
    for (std::uint32_t w = control.hint; w < words; ++w) {
      std::uint64_t bits = map[w];
      for (; bits; bits &= bits - 1) {
        const std::uint32_t i = w * 64 + static_cast<std::uint32_t>(__builtin_ctzll(bits));
        if (!reserve_slot(e, i)) {
          refusal = Refusal::no_space;
          return false;
        }
        HotDescriptor* line = pool_.hot(pool_.first_slot(e) + i);
        const std::uint64_t word = V::load(&line->word);
        if (!is_state(word) || state_of(word) != SlotState::free) {
          set_free(e, i, false);  // the descriptor is the truth
          continue;
        }
        start_writing(e, i, generation_of(word), slot);
        control.hint = w;
        return true;
      }
    }
    control.hint = 0;
    return false;
  }

  /// Makes sure that slot `i` has storage, a step ahead. False: the file system is full.
  bool reserve_slot(std::uint32_t e, std::uint32_t i) {
    ExtentControl& control = control_.extent(e);
    const std::uint64_t end = (std::uint64_t{i} + 1) * control.slot_size;
    if (end <= control.reserved_bytes) return true;
    if (control.full_disk) return false;
    const std::uint64_t extent = pool_.sb().extent_size;
    for (const std::uint64_t to : {std::min(extent, std::max(end, control.reserved_bytes + kReserveStep)), end}) {
      try {
        pool_.reserve_payload(e, control.reserved_bytes, to);
        control.reserved_bytes = to;
        return true;
      } catch (const Error& error) {
        if (error.kind != ErrorKind::no_space) throw;
        note_no_space(error);
      }
    }
    control.full_disk = 1;
    return false;
  }

  /// The mark goes into the descriptor before the slot leaves the free map, with the process's number: if it
  /// dies at any point, the sweep finds the slot.
  void start_writing(std::uint32_t e, std::uint32_t i, std::uint64_t generation, Slot& slot) {
    ControlHeader& header = context_.header();
    const ExtentControl& control = control_.extent(e);
    const std::uint32_t number = pool_.first_slot(e) + i;
    HotDescriptor* line = pool_.hot(number);
    V::store(&header.intent, number + 1);
    V::store(&line->print_lo, std::uint64_t{0});
    V::store(&line->print_hi, std::uint64_t{0});
    V::store(control_.writer(number), own_number());
    // For this host alone: to the others it is as good as free.
    V::store(&line->word, make_word(generation, context_.process, SlotState::writing));
    // Lest it lies dirty in a cache until this process is long dead, and then overwrites a pool that was formatted anew.
    V::write_back_soon(Point::writing, line);
    set_free(e, i, false);
    V::store(&header.intent, std::uint32_t{0});
    slot.number = number;
    slot.generation = generation;
    slot.capacity = control.slot_size;
    slot.offset = i * control.slot_size;
    slot.address = pool_.payload(e) + slot.offset;
  }

  /// Gets an extent of a device for this cut: an own one that holds nothing, or a free one. Under the lock.
  bool claim_on(std::uint32_t d, std::uint32_t cut, Refusal& refusal) {
    const DeviceEntry& device = pool_.sb().devices[d];
    try {
      for (std::uint32_t k = 0; k < device.extents; ++k) {
        const std::uint32_t e = device.first_extent + k;
        const ExtentControl& control = control_.extent(e);
        if (control.owned) {
          // A cut that nobody uses any more makes way; an extent of this cut has no free slot, or it would
          // have been taken.
          if (control.draining || (control.slots != 0 && (control.slots == cut || control.free != control.slots))) {
            continue;
          }
          if (extents_.cut(e, cut)) return true;
        }
      }
      refresh_unclaimed();
      while (!unclaimed_.empty()) {
        const auto at = std::find_if(unclaimed_.begin(), unclaimed_.end(),
                                     [&](std::uint32_t e) { return pool_.device_of(e) == d; });
        if (at == unclaimed_.end()) break;
        const std::uint32_t e = *at;
        unclaimed_.erase(at);
        if (control_.extent(e).owned || !extents_.claim(e)) continue;
        control_.extent(e) = ExtentControl{};
        control_.extent(e).owned = 1;
        if (extents_.cut(e, cut)) return true;
      }
    } catch (const Error& error) {
      if (error.kind != ErrorKind::no_space) throw;
      note_no_space(error);
      refusal = Refusal::no_space;
    }
    return false;
  }

  /// The extents that nobody claims, as of at most a heartbeat ago: in a full pool, nobody reads all claims of all
  /// hosts for every chunk.
  void refresh_unclaimed() {
    const std::uint64_t now = context_.now_ms() + 1;  // 0: not known
    const std::uint64_t cuts = __atomic_load_n(&context_.header().cuts, __ATOMIC_ACQUIRE);
    if (unclaimed_at_ == 0 || unclaimed_cuts_ != cuts || now - unclaimed_at_ >= context_.options.heartbeat_ms) {
      unclaimed_ = extents_.unclaimed();
      unclaimed_at_ = now;
      unclaimed_cuts_ = cuts;
    }
  }

  void note_no_space(const Error& error) {
    const std::lock_guard guard(no_space_mutex_);
    last_no_space_ = error.what();
  }

  HostContext& context_;
  const PoolMemory& pool_;
  const ControlBlock& control_;
  Index<V>& index_;
  Extents<V>& extents_;

  Doomed<typename V::Mutex> doomed_;
  typename V::Mutex owned_mutex_;
  std::uint64_t owned_at_ = ~std::uint64_t{0};
  std::map<std::uint32_t, std::vector<std::vector<std::uint32_t>>> owned_;
  std::vector<std::uint32_t> owned_all_;
  std::uint32_t rotor_ = 0;
  // Under the slot lock, which excludes the other threads of this process.
  std::vector<std::uint32_t> unclaimed_;
  std::uint64_t unclaimed_at_ = 0;
  std::uint64_t unclaimed_cuts_ = 0;
  std::atomic<bool> stuck_{false};  // the slot lock could not be had the last time
  mutable typename V::Mutex no_space_mutex_;
  std::string last_no_space_;
};

}  // namespace beluga
