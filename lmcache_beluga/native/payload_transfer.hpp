#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "copy.hpp"

namespace beluga {

/// The checksum of a chunk's payload: of up to 1 MiB its XXH3-64; of more, the XXH3-64 of those of its MiBs, so that
/// several threads can take it at once. Never 0, which says that there is none.
[[nodiscard]] std::uint64_t payload_checksum(std::span<const std::byte> payload);

/// A batch of payload copies that can take the payloads' checksums on the way, while the bytes are in the cache.
class PayloadTransfer {
 public:
  explicit PayloadTransfer(bool with_checksums) : with_checksums_(with_checksums) {}

  /// Copies `bytes` to `dst`; where that is null, only the checksum is taken. Payloads are numbered from 0.
  void add(void* dst, std::span<const std::byte> bytes);
  void run(CopyEngine& engine, CopyDirection direction);
  /// Of payload `i`, after run(): of its source, or, for a copy out of the pool, of what has arrived. 0 without
  /// checksums.
  [[nodiscard]] std::uint64_t checksum(std::size_t i) const noexcept;

 private:
  bool with_checksums_;
  std::vector<CopyPart> parts_;
  std::vector<std::uint64_t> sums_;    // of parts
  std::vector<std::size_t> first_{0};  // part of each payload; one more than there are payloads
};

}  // namespace beluga
