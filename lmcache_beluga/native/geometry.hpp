#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "layout.hpp"

namespace beluga {

/// What format() decides about a pool. Sizes in bytes.
struct FormatOptions {
  std::uint32_t max_hosts = 1;
  std::uint64_t extent_size = 0;  // 0: chosen from the size and chunk_hint; a power of two
  std::uint64_t chunk_hint = 0;   // size of a typical chunk, for sizing index and slots; 0: 256 KiB or more
  VisibilityMode visibility = VisibilityMode::coherent;
  PayloadVisibility payload_visibility = PayloadVisibility::flush;
  std::uint32_t max_lease_ms = 120'000;
  std::string key_scheme;
  std::uint32_t mode = 0600;  // of created files
  bool force = false;
};

/// Fills a superblock's geometry for devices of these sizes. Throws invalid_argument when they are too small.
Superblock plan_pool(std::span<const std::uint64_t> device_bytes, const FormatOptions& options);

/// Checks every number of a superblock against the others and the devices' real sizes, so that nothing
/// derived from it can leave the mapping. Throws version_mismatch, corrupt_pool or pool_truncated.
void validate_superblock(const Superblock& sb, std::span<const std::uint64_t> device_bytes);

std::uint32_t superblock_crc(const Superblock& sb);

/// Into how many slots an extent is cut for chunks of `size` bytes; 0 if the chunk does not fit.
///
/// Counts are rounded down to four significant bits, so that sizes share classes. For chunks between
/// min_slot and an eighth of an extent the waste is at most 1/9 of the slot: the next count is at most 9/8
/// of this one.
std::uint32_t slots_for(const Superblock& sb, std::uint64_t size);

/// Bytes of each of `slots` slots: a multiple of 64.
inline std::uint64_t slot_bytes(const Superblock& sb, std::uint32_t slots) {
  return sb.extent_size / slots / kLine * kLine;
}

}  // namespace beluga
