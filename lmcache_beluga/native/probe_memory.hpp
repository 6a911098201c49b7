#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "probe_operations.hpp"

namespace beluga {

/// Memory that probes may overwrite: it begins at a line boundary and has whole lines. Every probe checks that, and
/// throws `invalid_argument`. Probes that write take the lines out of the caches again: none is left to be written
/// back when the memory has another owner.
using ProbeSpan = std::span<std::byte>;

constexpr double kMaxProbeSeconds = 30;

/// Links one word of every `stride` bytes (a multiple of 64) of the span into one random cycle: each holds the offset
/// of the next, and the first is at 0. Returns how many there are. Takes 4 bytes of memory for each. A prefetcher
/// that brings the neighbours of a line brings none of the chain, if `stride` is larger than what it brings.
std::uint64_t build_chain(ProbeSpan span, std::size_t stride, std::uint64_t seed);

struct Chase {
  std::vector<double> ns;  // per dependent load, each the mean of a run of `batch` of them
  std::uint64_t end = 0;   // where it stopped
};

/// Follows such a chain from offset `start` in a thread on `cpu`, for at most `hops` loads and `seconds`. The span is
/// taken out of the caches before, so let `hops` be at most the chain's length. Throws `pool_io` when the memory
/// holds no chain (any more).
Chase chase_chain(ProbeSpan span, std::uint64_t start, std::uint64_t hops, std::uint64_t batch, double seconds,
                  int cpu);

/// Nanoseconds of single runs of an operation on blocks of `block` bytes, scattered over the span, in a thread on
/// `cpu`. As many as fit into `seconds`, at most `samples` (1..1e6) and at least one. What it takes to read the clock
/// is taken off.
std::vector<double> time_blocks(ProbeSpan span, const ProbeOperation& operation, std::size_t block,
                                std::uint32_t samples, double seconds, int cpu);

struct BandwidthPass {
  std::uint64_t bytes;
  double seconds;  // from the common start to the end of the slowest thread
};

/// Passes of an operation over the spans, in one thread on each of `cpus` (1..1024, one may be named more than once).
/// Every thread has its own part of each span, and takes pieces of 256 KiB from the spans in turn: several devices
/// are used at the same time. A pass that takes more than `seconds` ends early; none begins after that time.
std::vector<BandwidthPass> time_passes(std::span<const ProbeSpan> spans, const ProbeOperation& operation,
                                       std::span<const int> cpus, double seconds);

}  // namespace beluga
