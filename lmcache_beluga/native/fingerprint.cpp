#include "fingerprint.hpp"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace beluga {

Fingerprint fingerprint(std::span<const std::byte> bytes) noexcept {
  const XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
  if ((hash.low64 | hash.high64) == 0) return {1, 0};
  return {hash.low64, hash.high64};
}

std::uint64_t checksum64(std::span<const std::byte> bytes) noexcept {
  return XXH3_64bits(bytes.data(), bytes.size());
}

}  // namespace beluga
