#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>

#include "rng.hpp"

namespace sim {

enum class Schedule : std::uint8_t {
  uniform,  // any runnable fiber
  pct       // the one of highest priority; priorities are random and drop at random steps
};

/// How often the environment does what, relative to each other. 0: never of its own accord.
struct Rates {
  std::uint32_t drain = 16;    // a store buffer entry takes effect
  std::uint32_t complete = 8;  // a load_back is answered
  std::uint32_t arrive = 8;    // a write in flight reaches the device
  std::uint32_t evict = 2;     // a dirty line is written back
  std::uint32_t drop = 2;      // a clean line goes
  std::uint32_t prefetch = 6;  // a line comes in that nobody asked for
  std::uint32_t dma = 16;      // a GPU moves one line
};

struct Config {
  std::uint64_t device_bytes = std::uint64_t{1} << 20;
  std::uint64_t payload_begin = 0;  // device offsets: lines that hold payload
  std::uint64_t payload_end = 0;
  bool guarded = true;  // a plain access to device memory, past the machine, is a SIGSEGV

  Schedule schedule = Schedule::uniform;
  std::uint32_t pct_depth = 3;        // priority changes
  std::uint64_t pct_horizon = 4'000;  // they fall within so many steps, again and again
  std::uint32_t pct_patience =
      5'000;  // steps in a row after which a fiber that spins loses its priority

  std::uint32_t stalls =
      40;  // of 1024 flushes, fences and locked operations, those before which ...
  std::uint32_t stall_steps = 64;  // ... a fiber stands still for up to so many steps

  std::uint32_t environment = 400;  // of 1024 steps, those that are the environment's
  Rates rates;

  std::uint32_t flush_at_once =
      300;  // of 1024 flushes, those that take effect at once, if they may
  std::uint32_t answer_at_once = 300;  // of 1024 load_backs
  std::uint32_t refetch = 100;  // of 1024 flushed lines, those that are prefetched again at once

  std::uint32_t step_ns_min = 20;  // what an instruction costs
  std::uint32_t step_ns_max = 400;
  std::uint64_t fabric_lag_ns = 30'000;  // no write is in flight for longer
  std::uint64_t store_lag_ns = 20'000;   // no store buffer entry is older
  bool payload_in_order = true;  // a payload write of a host arrives after that host's earlier ones
  bool ddio = true;              // a GPU's write lands in its host's cache

  std::uint32_t drift_ppm = 200;              // the most a host's clock is too fast or slow
  std::uint64_t clock_offset_ms = 1'000'000;  // the most that clocks start apart

  std::uint32_t trace_events = 400;  // how many of the last events a failure prints
  std::FILE* trace = nullptr;        // every event, as it happens

  /// This configuration with everything that is left to chance chosen by the seed: schedule, rates
  /// (with starvation: some never happen, or as late as they can), costs, lags. Sizes and promises
  /// stay.
  Config varied(std::uint64_t seed) const {
    Rng rng(seed ^ 0x5eed0fc0f1650000);
    Config c = *this;
    c.schedule = rng.one_in(2) ? Schedule::uniform : Schedule::pct;
    c.pct_depth = 1 + rng.below(5);
    c.pct_horizon = std::uint64_t{8} << rng.below(12);
    static constexpr std::uint32_t kStalls[] = {0, 10, 50, 200};
    c.stalls = kStalls[rng.below(4)];
    c.stall_steps = 8u << rng.below(8);
    static constexpr std::uint32_t kShares[] = {60, 200, 400, 600, 800};
    c.environment = kShares[rng.below(5)];
    static constexpr std::uint32_t kWeights[] = {0, 1, 4, 16, 32};
    const auto weight = [&] { return kWeights[rng.below(5)]; };
    c.rates.drain = weight();
    c.rates.complete = weight();
    c.rates.arrive = weight();
    c.rates.evict = rng.one_in(2) ? weight() : weight() / 4;
    c.rates.drop = weight() / 4;
    c.rates.prefetch = weight();
    c.rates.dma = 4 + weight();
    static constexpr std::uint32_t kAtOnce[] = {0, 200, 600, 1000};
    c.flush_at_once = kAtOnce[rng.below(4)];
    c.answer_at_once = kAtOnce[rng.below(4)];
    static constexpr std::uint32_t kRefetched[] = {0, 0, 50, 200, 800};
    c.refetch = kRefetched[rng.below(5)];
    static constexpr std::uint32_t kCosts[] = {40, 400, 400, 4'000, 20'000};
    c.step_ns_max = kCosts[rng.below(5)];
    c.step_ns_min = c.step_ns_max / 20;
    static constexpr std::uint32_t kLags[] = {2, 30, 200, 1'000};  // steps
    c.fabric_lag_ns =
        std::min<std::uint64_t>(std::uint64_t{c.step_ns_max} * kLags[rng.below(4)], 5'000'000);
    c.store_lag_ns = std::uint64_t{c.step_ns_max} * (8 + rng.below(120));
    return c;
  }
};

}  // namespace sim
