#pragma once

#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "crc32c.hpp"
#include "fingerprint.hpp"
#include "pool_memory.hpp"
#include "visibility.hpp"

namespace beluga {

inline constexpr int kSeqlockRetries = 16;

/// Reads a hot line so that all its words belong to one state of the slot. The caller has observed the line.
/// False when a writer kept changing it: a miss for the reader.
/// SYNC POINT: ready, closing, reopen, freed (with publish_word and Publication)
template <class V>
bool read_hot(const HotDescriptor* line, HotDescriptor& out) noexcept {
  for (int i = 0; i < kSeqlockRetries; ++i) {
    if (i > 0) {
      V::observe(Point::ready, line, kLine);
      V::observe_fence(Point::ready);
    }
    out.word = V::load(&line->word);
    load_words<V>(reinterpret_cast<std::byte*>(&out) + 8, reinterpret_cast<const std::byte*>(line) + 8,
                  sizeof(HotDescriptor) - 8);
    std::atomic_thread_fence(std::memory_order_acquire);
    if (V::load(&line->word) == out.word) return true;
  }
  return false;
}

/// Changes the state of an own slot and makes the change reach every host before anything later.
/// SYNC POINT: ready, closing, reopen, freed, void_slot (with read_hot)
template <class V>
void publish_word(Point point, HotDescriptor* line, std::uint64_t word) noexcept {
  V::store(&line->word, word);
  V::confirm(point, line, kLine);
}

/// Do the hot line's numbers stay inside the slot's extent and record?
inline bool fits(const Superblock& sb, const HotDescriptor& hot) noexcept {
  return hot.size >= 1 && hot.size <= sb.extent_size && hot.offset <= sb.extent_size - hot.size &&
         hot.offset % kLine == 0 && hot.record_bytes >= 1 &&
         std::uint32_t{hot.record_bytes} + hot.meta_bytes <= sb.record_bytes;
}

inline Fingerprint print_of(const HotDescriptor& hot) noexcept { return {hot.print_lo, hot.print_hi}; }

/// CRC of a descriptor. Seeded with where it lies and with its generation, so that a record copied elsewhere
/// or left from an earlier chunk does not pass. `cold` holds record_bytes + meta_bytes bytes.
inline std::uint32_t descriptor_crc(std::uint32_t slot, const HotDescriptor& hot, std::span<const std::byte> cold) {
  const std::uint64_t seed[2] = {slot, generation_of(hot.word)};
  const auto* bytes = reinterpret_cast<const std::byte*>(&hot);
  std::uint32_t crc = crc32c(0, std::as_bytes(std::span(seed)));
  crc = crc32c(crc, {bytes + 8, 40});
  crc = crc32c(crc, {bytes + 52, 12});
  return crc32c(crc, cold);
}

/// A descriptor as read and validated: what a slot holds.
struct Record {
  HotDescriptor hot;
  std::vector<std::byte> cold;  // key record, then metadata

  std::span<const std::byte> key() const noexcept { return {cold.data(), hot.record_bytes}; }
  std::span<const std::byte> meta() const noexcept {
    return {cold.data() + hot.record_bytes, hot.meta_bytes};
  }
};

enum class ReadResult { ok, unstable, garbage };

/// Bytes to read for the record and metadata of `hot`, in whole words.
inline std::size_t cold_words(const HotDescriptor& hot) noexcept {
  return (std::size_t{hot.record_bytes} + hot.meta_bytes + 7) / 8 * 8;
}

/// Reads the cold lines that belong to `hot` into cold_words(hot) bytes, and checks numbers and CRC. `unstable`:
/// the slot changed meanwhile. The caller has observed the cold lines, once: before anything is called garbage they
/// are read from the device again.
template <class V>
ReadResult read_cold(const PoolMemory& pool, std::uint32_t slot, const HotDescriptor& hot,
                     std::span<std::byte> cold) {
  if (!fits(pool.sb(), hot)) return ReadResult::garbage;
  const std::size_t bytes = std::size_t{hot.record_bytes} + hot.meta_bytes;
  for (bool afresh = false;; afresh = true) {
    load_words<V>(cold.data(), pool.cold(slot), cold.size());
    std::atomic_thread_fence(std::memory_order_acquire);
    const bool good = descriptor_crc(slot, hot, cold.first(bytes)) == hot.crc;
    if (!good) {  // a cache may have the hot line of one chunk and the cold lines of another
      V::observe(Point::record, pool.hot(slot), kLine);
      V::observe(Point::record, pool.cold(slot), cold.size());
      V::observe_fence(Point::record);
    }
    // Closing and its undoing change the state alone; any other change makes the copy worthless.
    if (generation_of(V::load(&pool.hot(slot)->word)) != generation_of(hot.word)) return ReadResult::unstable;
    if (good) return ReadResult::ok;
    if (afresh) return ReadResult::garbage;  // one chunk all the time, and its lines do not belong together
  }
}

template <class V>
ReadResult read_cold(const PoolMemory& pool, std::uint32_t slot, const HotDescriptor& hot,
                     std::vector<std::byte>& cold) {
  if (!fits(pool.sb(), hot)) return ReadResult::garbage;
  cold.resize(cold_words(hot));
  return read_cold<V>(pool, slot, hot, std::span(cold));
}

}  // namespace beluga
