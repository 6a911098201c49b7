#pragma once

#include <cstring>
#include <span>
#include <vector>

#include "eviction.hpp"
#include "leases.hpp"

namespace beluga {

enum class PutResult { stored = 0, duplicate = 1, refused = 2 };

/// What a chunk is to be published with.
struct ChunkDescription {
  Fingerprint print;
  std::span<const std::byte> record;
  std::span<const std::byte> meta;
  std::uint64_t size = 0;
  std::uint32_t depth = 0;
  std::uint64_t checksum = 0;  // payload_checksum(); 0: none
};

/// Turns a written slot into a chunk that every host finds.
template <class V>
class Publication {
 public:
  Publication(HostContext& context, Index<V>& index, Leases<V>& leases, Slots<V>& slots, Eviction<V>& eviction)
      : context_(context),
        pool_(*context.pool),
        index_(index),
        leases_(leases),
        slots_(slots),
        eviction_(eviction) {}

  /// Is the slot still this process's, in the life that it was reserved for?
  bool reserved(const Slot& slot) const {
    return V::load(&pool_.hot(slot.number)->word) == writing_word(slot);
  }

  /// Publishes a reserved slot. From the return of `stored` on, every later lookup on any host finds the chunk until
  /// it is evicted or removed. Whatever happens, the slot is no longer the caller's. With `lease` the chunk is leased
  /// before anybody could evict it (null when that failed).
  PutResult publish(const Slot& slot, const ChunkDescription& chunk, PayloadWrite how,
                    std::shared_ptr<Lease>* lease) {
    if (index_.find_one(chunk.print)) {  // somebody was faster
      slots_.abandon(slot.number, slot.generation);
      context_.count(Count::duplicates);
      return PutResult::duplicate;
    }
    // SYNC POINT: payload (with Leases::freshen_payload): before READY, since no CRC covers it.
    V::publish_payload(slot.address, chunk.size, how, context_.payload_cached());
    if constexpr (V::mode == VisibilityMode::noncoherent) {
      if (how == PayloadWrite::cached && context_.payload_cached()) context_.count(Count::flushed_bytes, chunk.size);
      V::store(context_.control->fresh_generation(slot.number), slot.generation + 1);
    }
    describe(slot, chunk);

    // The entry goes first: while the slot is WRITING it leads nowhere, and room in the lane is certain before
    // the chunk exists. A process killed here leaves a WRITING slot, whose sweep removes the entry.
    bool entered = index_.insert(chunk.print, slot.number);
    for (int i = 0; !entered && i < kLaneAttempts && eviction_.clear_lane(chunk.print); ++i) {
      entered = index_.insert(chunk.print, slot.number);
    }
    if (!entered) {
      slots_.abandon(slot.number, slot.generation);
      context_.count(Count::refused_leased);
      return PutResult::refused;
    }
    if (lease) *lease = leases_.hold_unpublished(chunk.print, slot.number, writing_word(slot));
    HotDescriptor* line = pool_.hot(slot.number);
    const bool mine =
        V::exchange_if(&line->word, writing_word(slot), make_word(slot.generation, 0, SlotState::ready));
    slots_.written(slot.number);
    if (!mine) {  // only damage changes the word of a slot that is being written
      index_.remove(chunk.print, slot.number);
      context_.count(Count::garbage);
      return PutResult::refused;
    }
    // SYNC POINT: ready, lane (with Index::find_block): whoever reads the entry later reads READY too.
    const Place places[] = {{Point::ready, line}, {Point::lane, index_.own_lane(chunk.print)}};
    V::confirm_all(places);
    return PutResult::stored;
  }

 private:
  static constexpr int kLaneAttempts = 16;

  std::uint64_t writing_word(const Slot& slot) const {
    return make_word(slot.generation, context_.process, SlotState::writing);
  }

  /// Writes everything of the descriptor but its word.
  void describe(const Slot& slot, const ChunkDescription& chunk) const {
    HotDescriptor* line = pool_.hot(slot.number);
    HotDescriptor hot{};
    hot.word = writing_word(slot);
    hot.print_lo = chunk.print.lo;
    hot.print_hi = chunk.print.hi;
    hot.size = chunk.size;
    hot.offset = slot.offset;
    hot.checksum = chunk.checksum;
    hot.record_bytes = static_cast<std::uint16_t>(chunk.record.size());
    hot.meta_bytes = static_cast<std::uint16_t>(chunk.meta.size());
    hot.born = context_.tick();
    hot.depth = chunk.depth;
    std::vector<std::byte> cold((chunk.record.size() + chunk.meta.size() + 7) / 8 * 8);
    std::memcpy(cold.data(), chunk.record.data(), chunk.record.size());
    if (!chunk.meta.empty()) std::memcpy(cold.data() + chunk.record.size(), chunk.meta.data(), chunk.meta.size());
    hot.crc = descriptor_crc(slot.number, hot, {cold.data(), chunk.record.size() + chunk.meta.size()});
    store_words<V>(pool_.cold(slot.number), cold.data(), cold.size());
    store_words<V>(reinterpret_cast<std::byte*>(line) + 8, reinterpret_cast<const std::byte*>(&hot) + 8,
                   sizeof(hot) - 8);
    // SYNC POINT: record (with Leases::learn)
    V::confirm(Point::record, pool_.cold(slot.number), cold.size());
  }

  HostContext& context_;
  const PoolMemory& pool_;
  Index<V>& index_;
  Leases<V>& leases_;
  Slots<V>& slots_;
  Eviction<V>& eviction_;
};

}  // namespace beluga
