#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "geometry.hpp"
#include "pool_memory.hpp"

namespace beluga {

/// Lock bytes on device 0 of a pool. They lie past any device's end.
inline constexpr std::uint64_t kFormatLockByte = std::uint64_t{1} << 62;
inline constexpr std::uint64_t kAttachLockByte = (std::uint64_t{1} << 62) + 1;  // + host id

/// Formats the devices at `paths` as one pool and returns its superblock.
///
/// `size` is bytes per device: for files that do not exist yet, or 0 for the size they have. Nothing but an
/// empty file, a DAX device or an earlier pool is ever overwritten. Throws pool_busy while another process
/// formats or uses it (unless options.force), not_a_pool, pool_missing, pool_permission, no_space,
/// invalid_argument, pool_io.
Superblock format_pool(std::span<const std::string> paths, std::uint64_t size, const FormatOptions& options);

/// Maps an existing pool and validates its superblock. Waits up to `wait_ms` for a format in progress.
/// Throws pool_missing, not_a_pool, half_formatted, version_mismatch, corrupt_pool, pool_truncated,
/// pool_permission, pool_io.
std::shared_ptr<PoolMemory> open_pool(std::span<const std::string> paths, std::uint32_t wait_ms);

/// The same, but formats first when the files do not exist yet. Several processes may do this at once: one
/// formats, the others wait for it.
std::shared_ptr<PoolMemory> open_or_format_pool(std::span<const std::string> paths, std::uint64_t size,
                                                const FormatOptions& options, std::uint32_t wait_ms);

std::string uuid_text(const std::uint8_t (&uuid)[16]);

}  // namespace beluga
