#include "world.hpp"

#include <algorithm>
#include <exception>

#include "crash_report.hpp"

namespace sim {

thread_local constinit World* World::current_ = nullptr;

World::World(const Config& config, std::uint64_t seed)
    : setting_(config, seed), seed_(seed), scenario_rng_(seed ^ 0x7ce7a1105ce7a110) {
  if (current_) std::terminate();  // one at a time on a thread
  current_ = this;
  report_crashes();
}

World::~World() {
  // What closures hold may still use the device.
  checkers_.clear();
  timers_ = {};
  steps_due_ = {};
  for (const auto& fiber : fibers_) fiber->body = nullptr;
  for (const auto& fiber : fibers_) {
    if (fiber->state != Fiber::State::finished) fiber->process.alive = false;
  }
  for (const auto& process : processes_) {
    if (!process->alive) process->heap.free_all();
  }
  fibers_.clear();
  current_ = nullptr;
}

Host& World::add_host() {
  const Outside outside;
  const auto id = static_cast<std::uint16_t>(hosts_.size());
  hosts_.push_back(std::make_unique<Host>(setting_, id));
  Host& host = *hosts_.back();
  const auto ppm = static_cast<std::int64_t>(setting_.config.drift_ppm);
  host.clock_ppm =
      static_cast<std::int64_t>(setting_.rng.below(2 * setting_.config.drift_ppm + 1)) - ppm;
  host.clock_offset_ns =
      (1'000 + setting_.rng.between(0, setting_.config.clock_offset_ms)) * 1'000'000;
  if (!acting_) acting_ = &host;
  return host;
}

Process& World::add_process(Host& host) {
  const Outside outside;
  const auto id = static_cast<std::uint16_t>(processes_.size());
  processes_.push_back(std::make_unique<Process>(host, id));
  return *processes_.back();
}

void World::register_control(Host& host, void* memory, std::size_t bytes) {
  const Outside outside;
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  std::uint64_t offset = 0;
  for (const Host::Control& control : host.control) offset += control.end - control.begin;
  host.control.push_back({begin, begin + bytes, offset});
}

Outcome World::run_until(const std::function<bool()>& done, std::uint64_t max_steps) {
  const std::uint64_t last = setting_.moment.step + max_steps;
  while (!failed_) {
    if (done ? done() : unfinished_ == 0 && timers_.empty()) return Outcome::finished;
    if (setting_.moment.step >= last) return Outcome::out_of_steps;
    while (!steps_due_.empty() && steps_due_.top().when <= setting_.moment.step) {
      const auto action = steps_due_.top().action;
      steps_due_.pop();
      (*action)();
    }
    while (!timers_.empty() && timers_.top().when <= setting_.moment.ns) {
      const auto action = timers_.top().action;
      timers_.pop();
      (*action)();
    }
    wake_sleepers();
    age();
    if (failed_) break;
    if (setting_.rng.below(1024) < setting_.config.environment && environment_acts()) {
      check_step();
      continue;
    }
    if (Fiber* fiber = choose()) {
      setting_.moment.ns +=
          setting_.rng.between(setting_.config.step_ns_min, setting_.config.step_ns_max);
      resume(*fiber);
      check_step();
    } else if (setting_.rng.one_in(2) && environment_acts()) {
      check_step();
    } else if (!pass_time()) {
      if (!dma_goes_on()) return Outcome::stuck;
      check_step();
    }
  }
  return Outcome::failed;
}

void World::check_step() {
  ++setting_.moment.step;
  for (const auto& checker : checkers_) checker(*this);
}

void World::at_step(std::uint64_t step, std::function<void()> action) {
  const Outside outside;
  steps_due_.push({step, ++order_, std::make_shared<std::function<void()>>(std::move(action))});
}

void World::after_us(std::uint64_t us, std::function<void()> action) {
  const Outside outside;
  timers_.push({setting_.moment.ns + us * 1'000, ++order_,
                std::make_shared<std::function<void()>>(std::move(action))});
}

bool World::pass_time() {
  while (!sleeps_.empty() && sleeps_.top().sleep != sleeps_.top().fiber->sleep) sleeps_.pop();
  std::uint64_t next = 0;
  if (!sleeps_.empty()) next = sleeps_.top().ns;
  if (!timers_.empty() && (next == 0 || timers_.top().when < next)) next = timers_.top().when;
  if (next == 0) return false;
  if (next > setting_.moment.ns + kLongestDmaNs && !dmas_.empty()) return false;  // it moves a line first
  if (next > setting_.moment.ns) {
    setting_.moment.ns = next;
    catch_up();
  }
  return true;
}

void World::settle(bool evict) {
  for (const auto& fiber : fibers_) {
    if (!fiber->over()) fiber->core.drain();
    if (fiber->state == Fiber::State::finished) fiber->core.drain();
  }
  std::vector<Host*> left;
  for (const auto& host : hosts_) {
    host->memory.fabric().arrive_all();
    if (host->alive) left.push_back(host.get());
  }
  while (evict && !left.empty()) {
    const std::uint32_t i = setting_.rng.below(static_cast<std::uint32_t>(left.size()));
    if (left[i]->memory.evict_one()) {
      left[i]->memory.fabric().arrive_all();
    } else {
      left.erase(left.begin() + i);
    }
  }
}

void World::fail(std::string what) {
  const Outside outside;
  if (failed_) return;
  failed_ = true;
  note("FAILED: " + what);
  failure_ = std::string(what.c_str(), what.size());  // allocated outside of the process
}

void World::note(std::string text) {
  const Outside outside;
  setting_.trace.note(std::string(text.c_str(), text.size()),
                      running_ ? running_->process.host.id : std::uint16_t{0xffff},
                      running_ ? running_->id : std::uint16_t{0xffff});
}

void World::peek(Host& host, std::uint64_t offset, void* out, std::size_t bytes) const {
  alignas(8) std::byte line[kLineBytes];
  host.memory.peek(HostMemory::line_of(offset), line);
  struct Pending {
    std::uint64_t serial, offset, value;
    std::uint32_t bytes;
  };
  std::vector<Pending> pending;
  for (const Fiber* fiber : busy_) {
    if (&fiber->process.host != &host) continue;
    fiber->core.each_pending_store(
        [&](std::uint64_t serial, std::uint64_t at, std::uint32_t n, std::uint64_t value) {
          if (at / kLineBytes == offset / kLineBytes) pending.push_back({serial, at, value, n});
        });
  }
  std::sort(pending.begin(), pending.end(),
            [](const Pending& a, const Pending& b) { return a.serial < b.serial; });
  for (const Pending& store : pending) {
    std::memcpy(line + store.offset % kLineBytes, &store.value, store.bytes);
  }
  std::memcpy(out, line + offset % kLineBytes, bytes);
}

std::uint64_t World::now_ms() const noexcept {
  return now_ms(running_ ? running_->process.host : *acting_);
}

std::uint64_t World::now_ms(const Host& host) const noexcept {
  std::uint64_t now = setting_.moment.ns;
  if (host.paused && host.clock_stops) now = host.paused_at_ns;
  now -= host.clock_stopped_ns;
  const auto drift = static_cast<std::int64_t>(now / 1'000) * host.clock_ppm / 1'000;
  return (host.clock_offset_ns + now + static_cast<std::uint64_t>(drift)) / 1'000'000;
}

}  // namespace sim
