#pragma once

#include <cstddef>
#include <cstdint>

namespace beluga {

/// What a process counts. Names, order and meaning are those of `Pool.stats()`.
enum class Count : std::uint32_t {
  lookups,
  hits,
  misses,
  puts,
  put_bytes,
  duplicates,
  refused_leased,
  refused_no_space,
  refused_busy,
  gets,
  get_bytes,
  evictions,
  evicted_bytes,
  removes,
  garbage,
  lost_leases,
  repaired,
  lane_evictions,
  swept_processes,
  checksum_failures,
  unverified,
  flushed_bytes,
  kCount
};

inline constexpr std::size_t kCounts = static_cast<std::size_t>(Count::kCount);

inline constexpr const char* kCountNames[kCounts] = {
    "lookups",      "hits",           "misses",           "puts",         "put_bytes",
    "duplicates",   "refused_leased", "refused_no_space", "refused_busy", "gets",
    "get_bytes",    "evictions",      "evicted_bytes",    "removes",      "garbage",
    "lost_leases",  "repaired",       "lane_evictions",   "swept_processes",
    "checksum_failures", "unverified",     "flushed_bytes",
};

/// One process's counters, in its own lines of the control block: adding contends with nobody.
struct Counters {
  std::uint64_t values[56];

  void add(Count what, std::uint64_t n = 1) noexcept {
    __atomic_fetch_add(&values[static_cast<std::size_t>(what)], n, __ATOMIC_RELAXED);
  }
  std::uint64_t get(Count what) const noexcept {
    return __atomic_load_n(&values[static_cast<std::size_t>(what)], __ATOMIC_RELAXED);
  }
};
static_assert(sizeof(Counters) == 448);
static_assert(kCounts <= 32, "a host page publishes 32 counters");

}  // namespace beluga
