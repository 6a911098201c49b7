#pragma once

#include <cstdint>
#include <string>

#include "cluster.hpp"

namespace sim {

/// What one random run is: its world, drawn from the seed alone.
struct ChaosPlan {
  Config config;
  ClusterShape shape;
  std::uint64_t steps = 0;
  std::uint32_t faults = 0;

  static ChaosPlan of(std::uint64_t seed, std::uint64_t steps);
};

struct ChaosResult {
  std::string failure;  // empty: every promise held
  std::uint64_t steps = 0;
  std::uint64_t judged = 0;
  std::uint32_t hosts = 0;
};

/// Hosts with a few processes each store, look up, lease, read, evict and remove the same few keys, while processes
/// are killed and paused, machines lose power, stop and wake up again.
ChaosResult run_chaos(std::uint64_t seed, std::uint64_t steps, const std::string& directory, std::FILE* trace = nullptr);

}  // namespace sim
