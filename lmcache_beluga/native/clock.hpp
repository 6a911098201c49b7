#pragma once

#include <ctime>

#include <cstdint>

namespace beluga {

/// Milliseconds of a clock that all processes of this machine share and that nobody sets. It includes
/// suspend, so that a laptop or VM that slept finds its leases expired.
inline std::uint64_t boot_ms() noexcept {
  timespec t{};
  clock_gettime(CLOCK_BOOTTIME, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1000 + static_cast<std::uint64_t>(t.tv_nsec) / 1'000'000;
}

inline std::uint64_t unix_ms() noexcept {
  timespec t{};
  clock_gettime(CLOCK_REALTIME, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1000 + static_cast<std::uint64_t>(t.tv_nsec) / 1'000'000;
}

}  // namespace beluga
