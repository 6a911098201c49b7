#pragma once

#include "eviction.hpp"

namespace beluga {

/// Taking chunks of this host away on purpose, whoever leases them.
template <class V>
class Removal {
 public:
  Removal(HostContext& context, Index<V>& index, Slots<V>& slots, Eviction<V>& eviction)
      : context_(context), pool_(*context.pool), index_(index), slots_(slots), eviction_(eviction) {}

  /// Takes a chunk out of the index now; its slot is free at once, or when its leases have ended.
  bool remove_slot(std::uint32_t slot, std::uint64_t word, const Fingerprint& print) {
    if (state_of(word) != SlotState::ready) return false;
    bool leased = false;
    if (eviction_.close(slot, word, true, leased)) {
      return slots_.finish(slot, eviction_.closing_word(word)) || doom(slot, word, print);
    }
    return leased && doom(slot, word, print);
  }

  /// Every copy of a key in this host's extents: of two processes that stored it at once there is a spare one.
  bool remove_own(const Fingerprint& print) {
    bool gone = false;
    for (int tries = 0; tries < kTries; ++tries) {
      const Found found = index_.find_own(print);
      if (!found) break;
      if (remove_slot(found.slot, found.word, print)) {
        gone = true;
      } else {
        // Somebody is trying to evict it right now: it goes, or it is READY again in a moment.
        V::sleep_us(100);
      }
    }
    return gone;
  }

  /// Every chunk of this host. Returns how many.
  std::uint64_t remove_all_own() {
    std::uint64_t removed = 0;
    for (std::uint32_t e = 0; e < context_.sb().extents; ++e) {
      const ExtentControl& control = context_.control->extent(e);
      if (!control.owned) continue;
      for (std::uint32_t i = 0; i < control.slots; ++i) {
        const std::uint32_t slot = pool_.first_slot(e) + i;
        HotDescriptor hot;
        if (!read_hot<V>(pool_.hot(slot), hot) || !is_state(hot.word)) continue;
        if (state_of(hot.word) == SlotState::ready) removed += remove_slot(slot, hot.word, print_of(hot));
      }
    }
    return removed;
  }

 private:
  static constexpr int kTries = 200;

  /// The chunk stays CLOSING for its readers, and nobody finds it any more.
  bool doom(std::uint32_t slot, std::uint64_t word, const Fingerprint& print) {
    index_.remove(print, slot);
    V::confirm(Point::lane, index_.own_lane(print), kLine);
    slots_.doomed().add(slot, eviction_.closing_word(word));
    return true;
  }

  HostContext& context_;
  const PoolMemory& pool_;
  Index<V>& index_;
  Slots<V>& slots_;
  Eviction<V>& eviction_;
};

}  // namespace beluga
