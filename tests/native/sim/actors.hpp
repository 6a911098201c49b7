#pragma once

#include <boost/context/fiber.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "core.hpp"
#include "host_memory.hpp"
#include "process_heap.hpp"
#include "setting.hpp"

namespace sim {

class World;

/// One machine: its cache, its way to the device, its clock.
struct Host {
  Host(Setting& setting, std::uint16_t number) : id(number), memory(setting, number) {}

  const std::uint16_t id;
  HostMemory memory;
  bool alive = true;
  bool paused = false;

  // The clock: milliseconds = offset + (now - stopped) * (1 + ppm / 1e6).
  std::int64_t clock_ppm = 0;
  std::uint64_t clock_offset_ns = 0;
  std::uint64_t clock_stopped_ns = 0;
  std::uint64_t paused_at_ns = 0;
  bool clock_stops = false;

  struct Control {
    std::uintptr_t begin, end;
    std::uint64_t offset;
  };
  std::vector<Control> control;
};

/// A process of a host. Its fibers are its threads, each on a CPU of its own.
struct Process {
  Process(Host& the_host, std::uint16_t number) : id(number), host(the_host) {}

  const std::uint16_t id;
  Host& host;
  bool alive = true;
  bool paused = false;
  ProcessHeap heap;
};

struct Fiber {
  enum class State : std::uint8_t { ready, sleeping, waiting, finished, dropped };

  Fiber(Setting& setting, Process& the_process, std::uint16_t number, std::string the_name,
        bool is_daemon)
      : id(number),
        process(the_process),
        name(std::move(the_name)),
        daemon(is_daemon),
        core(setting, the_process.host.memory, the_process.host.id, number) {}
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  bool over() const noexcept { return state == State::finished || state == State::dropped; }

  const std::uint16_t id;
  Process& process;
  const std::string name;
  const bool daemon;
  State state = State::ready;
  Core core;

  std::uint32_t place = 0;  // in the list of runnable fibers, if `listed`
  bool listed = false;
  bool busy = false;  // in the list of cores with something to drain
  std::uint64_t priority = 0;
  std::uint64_t stalled_until = 0;  // a step
  const void* waits_for = nullptr;  // a mutex
  std::uint64_t wake_ns = 0;        // 0: no time
  std::uint64_t sleep = 0;          // which sleep of this fiber it is
  bool timed_out = false;
  std::uint32_t locks_forbidden = 0;
  std::uint64_t robust_locks = 0;  // taken so far

  ProcessHeap* heap = nullptr;  // who pays when it goes on
  std::function<void()> body;
  boost::context::stack_context stack;
  boost::context::fiber main;
  // Never destroyed while the fiber is suspended: that would unwind it, through functions that must
  // not throw.
  union {
    boost::context::fiber context;
  };
  struct {
    void* caught;
    unsigned int uncaught;
  } exceptions{};  // the C++ runtime's, of this stack
};

}  // namespace sim
