#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace beluga {

/// 128-bit fingerprint of a key record: what the index is addressed by. Never all zero, so that an
/// empty index entry matches nothing. The same on every machine and in every process.
struct Fingerprint {
  std::uint64_t lo = 0;
  std::uint64_t hi = 0;

  friend bool operator==(const Fingerprint&, const Fingerprint&) = default;
};
static_assert(sizeof(Fingerprint) == 16);

/// XXH3-128 of `bytes` (seed 0); the all-zero value is mapped to {1, 0}.
[[nodiscard]] Fingerprint fingerprint(std::span<const std::byte> bytes) noexcept;

/// XXH3-64 of `bytes` (seed 0): a checksum for payloads, fast enough to run at copy speed.
[[nodiscard]] std::uint64_t checksum64(std::span<const std::byte> bytes) noexcept;

}  // namespace beluga
