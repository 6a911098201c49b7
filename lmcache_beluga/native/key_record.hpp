#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "fingerprint.hpp"

namespace beluga {

/// Version of the record form below: the first element of every record made from an LMCache key.
inline constexpr std::uint32_t kRecordForm = 1;

/// Which of LMCache's key types a record was made from: the second element of the record.
///
/// A record is the msgpack array (the shortest encoding of each value, as msgpack.packb gives it)
///
///     chunk   [form, 1, model_name, world_size, worker_id, dtype, tags, chunk_hash]
///     layer   [form, 2, model_name, world_size, worker_id, dtype, tags, chunk_hash, layer_id]
///     object  [form, 3, model_name, kv_rank, object_group_id, cache_salt, chunk_hash]
///
/// with the values that change from key to key last, so that the stem is encoded once per batch.
/// lmcache_beluga/keys.py holds the same form in Python, value by value.
enum class KeyKind : std::uint8_t { chunk = 1, layer = 2, object = 3 };

/// msgpack extension type of an integer outside [-2^63, 2^64): its shortest two's complement,
/// big-endian.
inline constexpr std::int8_t kWideIntExt = 1;

/// A growing byte buffer that is not zeroed before it is written, and keeps its memory when
/// cleared.
class RecordArena {
 public:
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] std::size_t capacity() const noexcept { return capacity_; }
  [[nodiscard]] const std::byte* data() const noexcept { return bytes_.get(); }
  [[nodiscard]] std::span<const std::byte> bytes() const noexcept { return {data(), size_}; }
  void clear() noexcept { size_ = 0; }

  /// Appends `n` bytes and returns where they lie, until the next append. Their values are
  /// indeterminate. Throws Error(invalid_argument) when the arena would exceed 4 GiB - 1.
  std::byte* append(std::size_t n) {
    if (n > capacity_ - size_) grow(n);
    std::byte* at = bytes_.get() + size_;
    size_ += n;
    return at;
  }
  void append(std::span<const std::byte> bytes) {
    if (!bytes.empty()) std::memcpy(append(bytes.size()), bytes.data(), bytes.size());
  }
  /// Takes back everything after the first `size` bytes.
  void truncate(std::size_t size) noexcept {
    if (size < size_) size_ = size;
  }

 private:
  void grow(std::size_t n);

  std::unique_ptr<std::byte[]> bytes_;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
};

/// The msgpack values that a record is made of. Each appends the shortest encoding of its value.
/// Lengths beyond 2^32 - 1 throw Error(invalid_argument).
namespace msgpack {
void array(RecordArena& out, std::size_t elements);
void nil(RecordArena& out);
void integer(RecordArena& out, std::int64_t value);
void unsigned_integer(RecordArena& out, std::uint64_t value);
/// An integer that fits neither of the above, as its shortest big-endian two's complement.
void wide_integer(RecordArena& out, std::span<const std::byte> big_endian);
void real(RecordArena& out, double value);
void string(RecordArena& out, std::string_view utf8);
void binary(RecordArena& out, std::span<const std::byte> bytes);
}  // namespace msgpack

/// The records and fingerprints of the keys of one call, in order.
///
/// Record i is arena[offsets[i], offsets[i + 1]); `offsets` has one element more than there are
/// keys.
struct KeyBatch {
  std::vector<Fingerprint> prints;
  std::vector<std::uint32_t> offsets{0};
  RecordArena arena;

  [[nodiscard]] std::size_t size() const noexcept { return prints.size(); }
  [[nodiscard]] bool empty() const noexcept { return prints.empty(); }
  /// The record of key `i` < size(); valid until the batch is changed.
  [[nodiscard]] std::span<const std::byte> record(std::size_t i) const noexcept {
    return {arena.data() + offsets[i], offsets[i + 1] - offsets[i]};
  }

  /// Empties the batch and keeps its memory.
  void clear() noexcept;
  /// Makes room for `keys` keys.
  void reserve(std::size_t keys);
  /// Ends the record that was appended to the arena since the last end: notes its bounds and
  /// fingerprint. Throws Error(invalid_argument) if it is empty.
  void finish_record();
  /// Appends one record that exists already.
  void add(std::span<const std::byte> record);
};

}  // namespace beluga
