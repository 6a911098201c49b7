#pragma once

#include <memory>

#include "hostile.hpp"
#include "pool_process.hpp"
#include "walk.hpp"

namespace fuzz {

using namespace beluga;

/// A process of a host, without threads: each step of its heartbeat is an operation.
struct Member : PoolProcess<Hostile> {
  Member(std::shared_ptr<PoolMemory> memory, std::shared_ptr<ControlBlock> control, const AttachOptions& options,
         std::uint32_t process, bool first)
      : PoolProcess(memory, control, options, process), walk(context, index, hosts, slots, extents) {
    if (first) {
      control->reset(*memory, options.host_id);
      start_host(true, 0);
    } else {
      hosts.refresh_active();
    }
    Hostile::store(&control->process(process - 1).state, std::uint32_t{1});
    heartbeat.beat(0, 0);
  }

  Walk<Hostile> walk;
};

}  // namespace fuzz
