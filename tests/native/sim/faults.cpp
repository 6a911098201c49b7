#include <algorithm>

#include "world.hpp"

/// Deaths and pauses.
namespace sim {

void World::drop(Fiber& fiber) {
  if (fiber.over()) return;
  unlist(fiber);
  fiber.state = Fiber::State::dropped;
  ++fiber.sleep;
  if (!fiber.daemon) --unfinished_;
}

/// The fiber that runs may just have killed or paused itself.
void World::leave_if_dropped() {
  if (running_ && !can_run(*running_)) switch_out();
}

void World::stop_core(Fiber& fiber) { fiber.core.drain(); }

void World::kill_process(Process& process) {
  const Outside outside;
  if (!process.alive) return;
  process.alive = false;
  for (const auto& fiber : fibers_) {
    if (&fiber->process != &process || fiber->state == Fiber::State::dropped) continue;
    Event event;
    event.did = Did::killed;
    event.host = process.host.id;
    event.fiber = fiber->id;
    setting_.trace.record(event);
    fiber->core.cut();
    drop(*fiber);
  }
  locks_.each([&](RobustLocks::Lock& lock) {
    if (!lock.held || !lock.holder || &lock.holder->process != &process) return;
    lock = {lock.address, lock.host, nullptr, false, true};
    wake_waiters(lock.address);
  });
  leave_if_dropped();
}

bool World::gone(const Process& process) const noexcept {
  for (const auto& fiber : fibers_) {
    if (&fiber->process == &process && !fiber->over()) return false;
  }
  return std::none_of(dmas_.begin(), dmas_.end(),
                      [&](const auto& dma) { return dma->process == &process; });
}

void World::pause_process(Process& process) {
  const Outside outside;
  process.paused = true;
  for (const auto& fiber : fibers_) {
    if (&fiber->process != &process || fiber->over()) continue;
    stop_core(*fiber);
    unlist(*fiber);
    Event event;
    event.did = Did::paused;
    event.host = process.host.id;
    event.fiber = fiber->id;
    setting_.trace.record(event);
  }
  leave_if_dropped();
}

void World::resume_process(Process& process) {
  const Outside outside;
  process.paused = false;
  for (const auto& fiber : fibers_) {
    if (&fiber->process != &process || fiber->over()) continue;
    list(*fiber);
    Event event;
    event.did = Did::resumed;
    event.host = process.host.id;
    event.fiber = fiber->id;
    setting_.trace.record(event);
  }
}

void World::record_host(Did did, const Host& host) {
  Event event;
  event.did = did;
  event.host = host.id;
  setting_.trace.record(event);
}

void World::kill_host(Host& host) {
  const Outside outside;
  if (!host.alive) return;
  record_host(Did::host_killed, host);
  host.alive = false;
  host.paused = false;
  for (const auto& process : processes_) {
    if (&process->host == &host) process->alive = false;
  }
  for (const auto& fiber : fibers_) {
    if (&fiber->process.host != &host) continue;
    fiber->core.lose_some();
    drop(*fiber);
  }
  host.memory.power_off();
  std::erase_if(dmas_, [&](const auto& dma) { return &dma->process->host == &host; });
  locks_.each([&](RobustLocks::Lock& lock) {
    if (lock.host == host.id) lock = {lock.address, lock.host, nullptr, false, false};
  });
  leave_if_dropped();
}

void World::boot_host(Host& host) {
  const Outside outside;
  host.alive = true;
  host.clock_stopped_ns = setting_.moment.ns;  // counts from the boot
  host.clock_offset_ns =
      (1'000 + setting_.rng.between(0, setting_.config.clock_offset_ms)) * 1'000'000;
  record_host(Did::host_booted, host);
}

void World::pause_host(Host& host, Clock clock) {
  const Outside outside;
  if (host.paused || !host.alive) return;
  record_host(Did::host_paused, host);
  host.paused = true;
  host.clock_stops = clock == Clock::stops;
  host.paused_at_ns = setting_.moment.ns;
  for (const auto& fiber : fibers_) {
    if (&fiber->process.host != &host || fiber->over()) continue;
    stop_core(*fiber);
    unlist(*fiber);
  }
  leave_if_dropped();
}

void World::resume_host(Host& host) {
  const Outside outside;
  if (!host.paused) return;
  record_host(Did::host_resumed, host);
  host.paused = false;
  const std::uint64_t stood = host.clock_stops ? setting_.moment.ns - host.paused_at_ns : 0;
  host.clock_stopped_ns += stood;
  for (const auto& fiber : fibers_) {
    if (&fiber->process.host != &host || fiber->over()) continue;
    if (stood && fiber->wake_ns) sleep_until(*fiber, fiber->wake_ns + stood);
    list(*fiber);
  }
}

}  // namespace sim
