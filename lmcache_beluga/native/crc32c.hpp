#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace beluga {

/// CRC-32C (Castagnoli, as in iSCSI and ext4) of `bytes`, continued from `seed`.
///
/// A CRC may be computed in pieces: crc32c(crc32c(s, a), b) == crc32c(s, ab). Seed 0 gives the
/// standard value (0xE3069283 for "123456789"). Any other value is mixed in as if it were the CRC
/// of what came before, so that the same bytes under another seed (slot, generation) do not match.
/// Uses the SSE4.2 instruction where the CPU has it, else a table: the result is the same.
[[nodiscard]] std::uint32_t crc32c(std::uint32_t seed, std::span<const std::byte> bytes) noexcept;

/// The table form alone, whatever the CPU: what the tests compare the instruction with.
[[nodiscard]] std::uint32_t crc32c_portable(std::uint32_t seed,
                                            std::span<const std::byte> bytes) noexcept;

}  // namespace beluga
