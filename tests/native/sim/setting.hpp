#pragma once

#include "config.hpp"
#include "device.hpp"
#include "trace.hpp"
#include "watches.hpp"

namespace sim {

/// What all parts of the simulated machines share.
struct Setting {
  const Config config;
  Moment moment;
  Device device;
  Trace trace;
  Watches watches;
  Rng rng;  // of the schedule and the environment

  Setting(const Config& the_config, std::uint64_t seed)
      : config(the_config),
        device(config.device_bytes, config.guarded),
        trace(moment, config.trace_events, config.trace),
        watches(device),
        rng(seed) {}
};

}  // namespace sim
