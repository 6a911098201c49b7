#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <vector>

#include "errors.hpp"
#include "extents.hpp"
#include "index.hpp"
#include "leases.hpp"
#include "stamps.hpp"

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

/// The slots of this host's extents: which are free, and making more of them free.
template <class V>
class Slots {
 public:
  Slots(HostContext& context, Index<V>& index, Hosts<V>& hosts, Leases<V>& leases, Extents<V>& extents)
      : context_(context),
        pool_(*context.pool),
        control_(*context.control),
        index_(index),
        hosts_(hosts),
        leases_(leases),
        extents_(extents) {}

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

  /// Takes a slot for `size` bytes: a free one, one of a newly claimed extent, or that of the coldest chunk.
  /// Throws chunk_too_large.
  Refusal allocate(std::uint64_t size, Slot& slot) {
    const std::uint32_t cut = cut_for(size);
    Refusal refusal = Refusal::leased;
    for (int attempt = 0; attempt < kAllocateAttempts; ++attempt) {
      {
        Locked lock(*this);
        if (!lock) return Refusal::busy;
        refusal = Refusal::leased;
        if (take(cut, slot, refusal)) return Refusal::none;
      }
      if (!make_room(cut)) return refusal;
    }
    return refusal;
  }

  /// Returns a WRITING slot of this process that was not published. False when it was not its any more.
  bool abandon(std::uint32_t slot, std::uint64_t generation) {
    HotDescriptor* line = pool_.hot(slot);
    const std::uint64_t word = make_word(generation, context_.process, SlotState::writing);
    if (V::load(&line->word) != word) return false;
    Locked lock(*this);
    if (!lock) {
      doom(slot, generation);  // the lock's holder is stopped: tried again at each heartbeat
      return false;
    }
    index_.remove({V::load(&line->print_lo), V::load(&line->print_hi)}, slot);
    free_slot(slot, generation);
    return true;
  }

  /// Begins to evict a chunk: CLOSING, then a fresh look at every lease. True: closed, and no lease is live.
  /// With `doom` the chunk stays CLOSING even if leased, to be freed when its leases have ended.
  bool close(std::uint32_t slot, std::uint64_t ready_word, bool doom, bool& leased) {
    HotDescriptor* line = pool_.hot(slot);
    const std::uint64_t closing = make_word(generation_of(ready_word), context_.process, SlotState::closing);
    leased = false;
    if (!V::exchange_if(&line->word, ready_word, closing)) return false;
    V::publish(line, kLine);
    V::confirm(line);  // SYNC POINT: lease-or-evict (with Leases::hold)
    hosts_.refresh_active();
    leased = slot_use(context_, hosts_, slot, V::load(&line->born)).leased;
    if (!leased) return true;
    if (!doom) publish_word<V>(line, make_word(generation_of(ready_word), 0, SlotState::ready));
    return false;
  }

  /// Ends an eviction: entry away, generation + 1, free. The slot is CLOSING by this process, without leases.
  bool finish(std::uint32_t slot, std::uint64_t generation) { return finish(slot, generation, patience()); }
  bool finish(std::uint32_t slot, std::uint64_t generation, std::uint32_t timeout_ms) {
    Locked lock(*this, timeout_ms);
    if (!lock) return false;
    finish_locked(slot, generation);
    return true;
  }

  /// How long to wait for the slot lock. One operation may want it many times: once its holder has turned out to
  /// be stopped, nobody here waits for it again until it has been had.
  std::uint32_t patience() const noexcept {
    const std::uint32_t whole = context_.options.lock_timeout_ms;
    return stuck_ ? std::min(whole, kBriefMs) : whole;
  }
  /// The heartbeat's: leases must be renewed meanwhile.
  static constexpr std::uint32_t kBriefMs = 1;

  /// Evicts one chunk if nobody leases it. False: leased, or it changed meanwhile.
  bool evict(std::uint32_t slot, std::uint64_t ready_word) {
    const std::uint64_t size = V::load(&pool_.hot(slot)->size);
    bool leased = false;
    if (!close(slot, ready_word, false, leased)) return false;
    if (!finish(slot, generation_of(ready_word))) {
      publish_word<V>(pool_.hot(slot), make_word(generation_of(ready_word), 0, SlotState::ready));
      return false;
    }
    context_.count(Count::evictions);
    context_.count(Count::evicted_bytes, size <= pool_.sb().extent_size ? size : 0);
    return true;
  }

  /// Makes room in a full lane: drops what nobody confirms, else evicts its coldest chunk that is not leased.
  bool clear_lane(const Fingerprint& print) {
    const std::uint64_t bucket = pool_.bucket_of(print.lo);
    {
      Locked lock(*this);  // see scrub_lanes
      if (!lock) return false;
      const std::uint32_t dropped = index_.scrub_lane(bucket, false);
      context_.count(Count::repaired, dropped);
      if (dropped) return true;
    }
    Candidate coldest;
    for (const std::uint64_t& place : index_.own_lane(print)->entries) {
      const std::uint64_t entry = V::load(&place);
      if (entry == 0) return true;
      consider(static_cast<std::uint32_t>(entry) - 1, coldest);
    }
    if (!coldest.found || !evict(coldest.slot, coldest.word)) return false;
    context_.count(Count::lane_evictions);
    return true;
  }

  /// Evicts the coldest chunks until about `bytes` are free. Returns the bytes freed.
  std::uint64_t evict_bytes(std::uint64_t bytes) {
    std::uint64_t freed = 0;
    for (int misses = 0; freed < bytes && misses < kEvictMisses;) {
      refresh_owned();
      const std::vector<std::uint32_t> owned = all_owned();
      Candidate coldest = sample(owned);
      if (!coldest.found) coldest = scan(owned);
      if (!coldest.found) break;
      const std::uint64_t size = V::load(&pool_.hot(coldest.slot)->size);
      if (evict(coldest.slot, coldest.word)) {
        freed += size;
        misses = 0;
      } else {
        ++misses;
      }
    }
    return freed;
  }

  /// Gives every own extent without a chunk back. Returns how many.
  std::uint32_t release_empty() {
    Locked lock(*this);
    if (!lock) return 0;
    std::uint32_t released = 0;
    for (std::uint32_t e = 0; e < pool_.sb().extents; ++e) {
      const ExtentControl& control = control_.extent(e);
      if (control.owned && control.free == control.slots) {
        extents_.release(e);
        ++released;
      }
    }
    return released;
  }

  /// Takes over what a dead process of this host left: its half-written and half-evicted slots, its leases.
  /// False when something is left because the slot lock could not be had.
  bool sweep(std::uint32_t process, std::uint32_t timeout_ms) {
    bool clean = true;
    for (std::uint32_t e = 0; e < pool_.sb().extents; ++e) {
      ExtentControl& control = control_.extent(e);
      ExtentHeader header;
      const bool own = control.owned;
      V::exchange_if(&control.draining, static_cast<std::uint8_t>(process), std::uint8_t{0});
      std::uint32_t slots = own ? control.slots : 0;
      if (!own) {
        if (pool_.sb().max_hosts == 1 || !extents_.read_header(e, header)) continue;
        slots = header.slots;
      }
      const std::uint32_t first = pool_.first_slot(e);
      for (std::uint32_t i = 0; i < slots; ++i) {
        if (own && !is_free(e, i)) clean &= sweep_slot(first + i, process, timeout_ms);
        leases_.forget_process(first + i, process);
      }
    }
    return clean;
  }

  /// Frees a closed chunk whose leases have ended by now, or an abandoned slot. True when the slot is done with.
  bool retry_doomed(std::uint32_t slot, std::uint64_t generation) {
    HotDescriptor* line = pool_.hot(slot);
    const std::uint64_t word = V::load(&line->word);
    if (word == make_word(generation, context_.process, SlotState::writing)) return finish(slot, generation, kBriefMs);
    if (word != make_word(generation, context_.process, SlotState::closing)) return true;
    if (slot_use(context_, hosts_, slot, V::load(&line->born)).leased) return false;
    return finish(slot, generation, kBriefMs);
  }

  /// Looks at some own slots and lanes for what flipped bits or lost processes left, and repairs it.
  void scrub(std::uint32_t budget) {
    std::vector<std::uint32_t> orphans;
    scrub_some(budget, orphans);
    for (const std::uint32_t slot : orphans) {
      const std::uint64_t word = V::load(&pool_.hot(slot)->word);
      if (is_state(word) && state_of(word) == SlotState::closing && !owner_plausible(word)) adopt_closing(slot, word);
    }
  }

  /// Space may have come back to the file system.
  void retry_storage() {
    for (std::uint32_t e = 0; e < pool_.sb().extents; ++e) {
      ExtentControl& control = control_.extent(e);
      if (control.owned && control.full_disk) control.full_disk = 0;
    }
  }

  /// Frees a slot whatever its state. Under the lock.
  void free_slot(std::uint32_t slot, std::uint64_t generation) {
    ControlHeader& header = context_.header();
    const std::uint32_t e = pool_.extent_of(slot);
    V::store(&header.intent, slot + 1);
    publish_word<V>(pool_.hot(slot), make_word(generation + 1, 0, SlotState::free));
    set_free(e, slot - pool_.first_slot(e), true);
    V::store(&header.intent, std::uint32_t{0});
  }

  bool is_free(std::uint32_t extent, std::uint32_t i) const {
    return __atomic_load_n(&control_.free_map(extent)[i / 64], __ATOMIC_RELAXED) >> (i % 64) & 1;
  }

  /// Marks a slot in the free map to match its descriptor. Under the lock.
  void set_free(std::uint32_t extent, std::uint32_t i, bool free) {
    ExtentControl& control = control_.extent(extent);
    std::uint64_t& word = control_.free_map(extent)[i / 64];
    const std::uint64_t bit = std::uint64_t{1} << (i % 64);
    if (((word & bit) != 0) == free) return;
    __atomic_fetch_xor(&word, bit, __ATOMIC_RELAXED);
    control.free += free ? 1 : ~0u;
    if (free && i / 64 < control.hint) control.hint = i / 64;
  }

  /// The slot lock, for the life of the object; repairs first what a dead holder left undone.
  class Locked {
   public:
    explicit Locked(Slots& slots) : Locked(slots, slots.patience()) {}
    Locked(Slots& slots, std::uint32_t timeout_ms) : mutex_(slots.context_.header().slots) {
      const LockResult result = timeout_ms ? mutex_.lock(timeout_ms) : mutex_.try_lock();
      held_ = result != LockResult::timed_out;
      if (held_ || timeout_ms == slots.context_.options.lock_timeout_ms) slots.stuck_ = !held_;
      if (result == LockResult::owner_died) slots.repair();
    }
    ~Locked() {
      if (held_) mutex_.unlock();
    }
    Locked(const Locked&) = delete;
    Locked& operator=(const Locked&) = delete;
    explicit operator bool() const noexcept { return held_; }

   private:
    RobustMutex& mutex_;
    bool held_;
  };

 private:
  static constexpr int kAllocateAttempts = 64;
  static constexpr int kEvictMisses = 64;
  static constexpr int kSamples = 16;
  static constexpr int kSampleRounds = 4;
  static constexpr std::uint64_t kReserveStep = 32 << 20;
  /// A chunk counts as this much older per position in its prefix, so that suffixes go before prefixes.
  static constexpr std::uint64_t kDepthAgeMs = 16;
  static constexpr std::uint32_t kDepthLimit = 4096;

  struct Candidate {
    bool found = false;
    std::uint32_t slot = 0;
    std::uint64_t word = 0;
    std::uint64_t age = 0;
  };

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

  /// The own extents of each cut, by device, as of the last change. Per process.
  void refresh_owned() {
    std::lock_guard guard(owned_mutex_);
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
    std::lock_guard guard(owned_mutex_);
    return owned_all_;
  }

  /// Own extents cut into `cut` slots, or into any other number.
  std::vector<std::uint32_t> owned_with(std::uint32_t cut, bool same) {
    std::lock_guard guard(owned_mutex_);
    std::vector<std::uint32_t> extents;
    for (const auto& [slots, devices] : owned_) {
      if ((slots == cut) != same) continue;
      for (const auto& list : devices) extents.insert(extents.end(), list.begin(), list.end());
    }
    return extents;
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

  bool take_on(std::uint32_t device, std::uint32_t cut, Slot& slot, Refusal& refusal) {
    refresh_owned();
    std::lock_guard guard(owned_mutex_);
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
        last_no_space_ = error.what();
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
    publish_word<V>(line, make_word(generation, context_.process, SlotState::writing));
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
          if (control.slots != 0 && (control.slots == cut || control.free != control.slots)) continue;
          extents_.cut(e, cut);
          return true;
        }
        if (!extents_.free_of_claims(e) || !extents_.claim(e)) continue;
        control_.extent(e) = ExtentControl{};
        control_.extent(e).owned = 1;
        extents_.cut(e, cut);
        return true;
      }
    } catch (const Error& error) {
      if (error.kind != ErrorKind::no_space) throw;
      last_no_space_ = error.what();
      refusal = Refusal::no_space;
    }
    return false;
  }

  /// Evicts one chunk, or empties an extent of another cut that is used much less. False: nothing may go.
  bool make_room(std::uint32_t cut) {
    refresh_owned();
    const std::vector<std::uint32_t> same = owned_with(cut, true);
    const std::vector<std::uint32_t> other = owned_with(cut, false);
    const Candidate mine = sample(same);
    if (!other.empty()) {
      std::uint32_t victim = 0;
      std::uint64_t oldest = 0;
      for (int i = 0; i < kSamples / 2; ++i) {
        const std::uint32_t e = other[random(static_cast<std::uint32_t>(other.size()))];
        std::uint64_t total = 0;
        std::uint32_t n = 0;
        for (int k = 0; k < 4; ++k) {
          const Candidate one = sample({e}, 1);
          if (one.found) {
            total += one.age;
            ++n;
          }
        }
        if (n && total / n + 1 > oldest) {
          oldest = total / n + 1;
          victim = e;
        }
      }
      // Emptying a whole extent costs many chunks: only for one that is clearly colder, or if there is no other
      // way.
      if (oldest && (!mine.found || oldest > 2 * mine.age + 1000) && drain(victim)) return true;
    }
    for (int i = 0; i < kEvictMisses; ++i) {
      const Candidate coldest = i == 0 ? mine : i < kSampleRounds ? sample(same) : scan(same);
      if (coldest.found && evict(coldest.slot, coldest.word)) return true;
      if (!coldest.found && i >= kSampleRounds) break;
    }
    for (const std::uint32_t e : other) {
      if (drain(e)) return true;
    }
    return false;
  }

  /// Could everything in an own extent be evicted now?
  bool drainable(std::uint32_t e) {
    const std::uint32_t first = pool_.first_slot(e);
    for (std::uint32_t i = 0; i < control_.extent(e).slots; ++i) {
      if (is_free(e, i)) continue;
      Candidate chunk;
      consider(first + i, chunk);
      if (!chunk.found) return false;
    }
    return true;
  }

  /// Evicts everything in an own extent. True when it is empty then.
  bool drain(std::uint32_t e) {
    ExtentControl& control = control_.extent(e);
    if (!drainable(e)) return false;  // do not evict the rest for nothing
    {
      Locked lock(*this);
      if (!lock || !control.owned || control.draining) return false;
      control.draining = static_cast<std::uint8_t>(context_.process);
    }
    const std::uint32_t first = pool_.first_slot(e);
    bool empty = true;
    for (std::uint32_t i = 0; i < control.slots && empty; ++i) {
      if (is_free(e, i)) continue;
      const std::uint64_t word = V::load(&pool_.hot(first + i)->word);
      empty = is_state(word) && state_of(word) == SlotState::ready && evict(first + i, word);
    }
    // Without the lock: it must not stay even if the lock cannot be had. Somebody else may have cut the extent
    // and be draining it by now.
    V::exchange_if(&control.draining, static_cast<std::uint8_t>(context_.process), std::uint8_t{0});
    return empty && control.free == control.slots;
  }

  /// The coldest of some random chunks of these extents that nobody leases.
  Candidate sample(const std::vector<std::uint32_t>& extents, int wanted = kSamples) {
    Candidate coldest;
    if (extents.empty()) return coldest;
    int seen = 0;
    for (int i = 0; i < wanted * 4 && seen < wanted; ++i) {
      const std::uint32_t e = extents[random(static_cast<std::uint32_t>(extents.size()))];
      const std::uint32_t slots = control_.extent(e).slots;
      if (slots == 0) continue;
      const std::uint32_t k = random(slots);
      if (is_free(e, k)) continue;
      ++seen;
      consider(pool_.first_slot(e) + k, coldest);
    }
    return coldest;
  }

  /// The same, but finds a chunk wherever it is: where few slots hold one that may go, chance misses it.
  Candidate scan(const std::vector<std::uint32_t>& extents, int wanted = kSamples) {
    Candidate coldest;
    if (extents.empty()) return coldest;
    const std::uint32_t start = random(static_cast<std::uint32_t>(extents.size()));
    for (std::size_t k = 0; k < extents.size() && wanted > 0; ++k) {
      const std::uint32_t e = extents[(start + k) % extents.size()];
      const std::uint32_t slots = control_.extent(e).slots;
      for (std::uint32_t i = 0; i < slots && wanted > 0; ++i) {
        if (!is_free(e, i)) wanted -= consider(pool_.first_slot(e) + i, coldest);
      }
    }
    return coldest;
  }

  /// Keeps the colder of `coldest` and the chunk in `slot`; false if there is none or it is leased.
  bool consider(std::uint32_t slot, Candidate& coldest) {
    if (!context_.slot_in_range(slot)) return false;
    const HotDescriptor* line = pool_.hot(slot);
    const std::uint64_t word = V::load(&line->word);
    if (!is_state(word) || state_of(word) != SlotState::ready) return false;
    const SlotUse use = slot_use(context_, hosts_, slot, V::load(&line->born));
    if (use.leased) return false;
    const std::uint64_t age =
        use.idle_ms + std::uint64_t{std::min(V::load(&line->depth), kDepthLimit)} * kDepthAgeMs;
    if (!coldest.found || age > coldest.age) coldest = {true, slot, word, age};
    return true;
  }

  void finish_locked(std::uint32_t slot, std::uint64_t generation) {
    const HotDescriptor* line = pool_.hot(slot);
    index_.remove({V::load(&line->print_lo), V::load(&line->print_hi)}, slot);
    free_slot(slot, generation);
  }

  /// False when the slot is left as it was because the lock could not be had.
  bool sweep_slot(std::uint32_t slot, std::uint32_t process, std::uint32_t timeout_ms) {
    HotDescriptor* line = pool_.hot(slot);
    const std::uint64_t word = V::load(&line->word);
    if (!is_state(word) || process_of(word) != process) return true;
    if (state_of(word) == SlotState::writing) {
      Locked lock(*this, timeout_ms);
      if (lock && V::load(&line->word) == word) finish_locked(slot, generation_of(word));
      // The number of the dead is this process's own now: it is for nobody else to sweep.
      if (!lock && process == context_.process) doom(slot, generation_of(word));
      return static_cast<bool>(lock);
    }
    if (state_of(word) == SlotState::closing) adopt_closing(slot, word);
    return true;
  }

  /// A chunk whose evictor died: still leased, and its entry is there: it stays. Otherwise it goes.
  void adopt_closing(std::uint32_t slot, std::uint64_t word) {
    HotDescriptor* line = pool_.hot(slot);
    const Fingerprint print{V::load(&line->print_lo), V::load(&line->print_hi)};
    const std::uint64_t mine = make_word(generation_of(word), context_.process, SlotState::closing);
    if (!V::exchange_if(&line->word, word, mine)) return;
    V::publish(line, kLine);
    V::confirm(line);
    if (!slot_use(context_, hosts_, slot, V::load(&line->born)).leased) {
      if (!finish(slot, generation_of(word), kBriefMs)) doom(slot, generation_of(word));
    } else if (index_.holds(print, slot)) {
      publish_word<V>(line, make_word(generation_of(word), 0, SlotState::ready));
    } else {
      doom(slot, generation_of(word));
    }
  }

  void scrub_some(std::uint32_t budget, std::vector<std::uint32_t>& orphans) {
    Locked lock(*this, 0);
    if (!lock) return;
    const std::uint32_t lanes = budget;
    const std::uint64_t limit = pool_.slot_limit();
    std::uint64_t at = context_.header().scrub_cursor % limit;
    for (std::uint32_t steps = 0; budget && steps < pool_.sb().extents + budget; ++steps) {
      const std::uint32_t e = pool_.extent_of(static_cast<std::uint32_t>(at));
      const ExtentControl& control = control_.extent(e);
      const auto i = static_cast<std::uint32_t>(at - pool_.first_slot(e));
      if (!control.owned || i >= control.slots) {
        at = (std::uint64_t{pool_.first_slot(e)} + pool_.sb().slots_per_extent) % limit;
        continue;
      }
      scrub_slot(static_cast<std::uint32_t>(at), orphans);
      --budget;
      at = (at + 1) % limit;
    }
    context_.header().scrub_cursor = at;
    scrub_lanes(lanes);
  }

  void scrub_slot(std::uint32_t slot, std::vector<std::uint32_t>& orphans) {
    HotDescriptor* line = pool_.hot(slot);
    const std::uint32_t e = pool_.extent_of(slot);
    const std::uint32_t i = slot - pool_.first_slot(e);
    HotDescriptor hot;
    if (!read_hot<V>(line, hot)) return;
    const bool free = is_state(hot.word) && state_of(hot.word) == SlotState::free;
    if (free != is_free(e, i)) {
      set_free(e, i, free);
      context_.count(Count::repaired);
    } else if (is_state(hot.word) && state_of(hot.word) == SlotState::closing && !owner_plausible(hot.word)) {
      orphans.push_back(slot);  // may be leased: looked at without the lock
    } else if (!is_state(hot.word) || !owner_plausible(hot.word)) {
      finish_locked(slot, generation_of(hot.word));
      context_.count(Count::repaired);
    } else if (state_of(hot.word) == SlotState::ready) {
      scrub_chunk(slot, hot);
    }
    std::uint32_t* stamp = pool_.stamp(context_.host, slot);
    const std::uint32_t seen = V::load(stamp);
    // Older than half the clock's range, a stamp would soon look like one from the future.
    if (seen != 0 && static_cast<std::int32_t>(context_.tick() - seen) > 1 << 30) {
      V::exchange_if(stamp, seen, std::uint32_t{0});
    }
  }

  /// A chunk that cannot be read goes, one that the index has lost comes back.
  void scrub_chunk(std::uint32_t slot, HotDescriptor& hot) {
    HotDescriptor* line = pool_.hot(slot);
    const std::uint64_t ready = make_word(generation_of(hot.word), 0, SlotState::ready);
    if (hot.word != ready && V::exchange_if(&line->word, hot.word, ready)) {
      hot.word = ready;
      context_.count(Count::repaired);
    }
    V::observe(pool_.cold(slot), pool_.sb().record_bytes);
    V::observe_fence();
    const ReadResult result = read_cold<V>(pool_, slot, hot, scrub_cold_);
    if (V::load(&line->word) != hot.word) return;  // being evicted
    if (result == ReadResult::garbage) {
      if (slot_use(context_, hosts_, slot, hot.born).leased) return;
      context_.count(Count::garbage);
      context_.count(Count::repaired);
      finish_locked(slot, generation_of(hot.word));
    } else if (result == ReadResult::ok && !index_.holds(print_of(hot), slot)) {
      // Whoever evicts it now takes the entry out under the lock that is held here.
      if (index_.insert(print_of(hot), slot)) context_.count(Count::repaired);
    }
  }

  /// Under the lock no slot begins a new life, so that an entry which leads nowhere stays one.
  void scrub_lanes(std::uint32_t budget) {
    const std::uint64_t buckets = pool_.sb().buckets;
    for (std::uint64_t n = std::min<std::uint64_t>(budget, buckets); n; --n) {
      context_.count(Count::repaired, index_.scrub_lane(lane_cursor_++ & (buckets - 1), false));
    }
  }

  /// READY and FREE belong to no process; WRITING and CLOSING to one that exists.
  bool owner_plausible(std::uint64_t word) const {
    const std::uint32_t process = process_of(word);
    const SlotState state = state_of(word);
    if (state == SlotState::ready || state == SlotState::free) return true;
    return process >= 1 && process <= kMaxProcesses &&
           __atomic_load_n(&control_.process(process - 1).state, __ATOMIC_ACQUIRE) != 0;
  }

  std::uint32_t random(std::uint32_t below) {
    std::uint64_t x = random_.load(std::memory_order_relaxed);
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    random_.store(x, std::memory_order_relaxed);
    return static_cast<std::uint32_t>((x >> 32) * below >> 32);
  }

 public:
  struct Doomed {
    std::uint32_t slot;
    std::uint64_t generation;
  };
  /// A chunk that was removed while leased waits here until its leases have ended, an abandoned slot until the
  /// lock can be had.
  void doom(std::uint32_t slot, std::uint64_t generation) {
    std::lock_guard guard(doomed_mutex_);
    doomed_.push_back({slot, generation});
  }
  void retry_doomed() {
    std::vector<Doomed> waiting;
    {
      std::lock_guard guard(doomed_mutex_);
      waiting.swap(doomed_);
    }
    std::erase_if(waiting, [&](const Doomed& d) { return retry_doomed(d.slot, d.generation); });
    if (waiting.empty()) return;
    std::lock_guard guard(doomed_mutex_);
    doomed_.insert(doomed_.end(), waiting.begin(), waiting.end());
  }
  const std::string& last_no_space() const { return last_no_space_; }

 private:
  HostContext& context_;
  const PoolMemory& pool_;
  const ControlBlock& control_;
  Index<V>& index_;
  Hosts<V>& hosts_;
  Leases<V>& leases_;
  Extents<V>& extents_;

  std::mutex owned_mutex_;
  std::uint64_t owned_at_ = ~std::uint64_t{0};
  std::map<std::uint32_t, std::vector<std::vector<std::uint32_t>>> owned_;
  std::vector<std::uint32_t> owned_all_;
  std::uint32_t rotor_ = 0;
  std::atomic<bool> stuck_{false};  // the slot lock could not be had the last time
  std::mutex doomed_mutex_;
  std::vector<Doomed> doomed_;
  std::vector<std::byte> scrub_cold_;
  std::uint64_t lane_cursor_ = 0;
  std::string last_no_space_;
  std::atomic<std::uint64_t> random_{0x9e3779b97f4a7c15 ^ boot_ms()};
};

}  // namespace beluga
