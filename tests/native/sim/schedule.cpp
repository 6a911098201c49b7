#include <cxxabi.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <utility>

#include "stacks.hpp"
#include "world.hpp"

/// Fibers: how they come to run, sleep, wait and end.
namespace sim {

namespace {

struct StackOf {
  using traits_type = boost::context::stack_traits;
  boost::context::stack_context allocate() { return stack; }
  void deallocate(boost::context::stack_context&) noexcept {}  // ~Fiber gives it back
  boost::context::stack_context stack;
};

}  // namespace

Fiber::~Fiber() { Stacks::give_back(stack); }

Fiber& World::spawn(Process& process, std::string name, std::function<void()> body, Daemon daemon) {
  const Outside outside;
  const auto id = static_cast<std::uint16_t>(fibers_.size());
  const bool is_daemon = daemon == Daemon::yes;
  setting_.trace.fiber_names.push_back("p" + std::to_string(process.id) + " " + name);
  fibers_.push_back(std::make_unique<Fiber>(setting_, process, id, std::move(name), is_daemon));
  Fiber& fiber = *fibers_.back();
  fiber.heap = &process.heap;
  fiber.body = std::move(body);
  fiber.priority = lowest_ + 1 + (setting_.rng.next() >> 16);
  fiber.stack = Stacks::take();
  new (&fiber.context) boost::context::fiber(
      std::allocator_arg, StackOf{fiber.stack}, [this, &fiber](boost::context::fiber&& main) {
        fiber.main = std::move(main);
        try {
          fiber.body();
        } catch (const std::exception& error) {
          fail("fiber " + fiber.name + " threw: " + error.what());
        } catch (...) {
          fail("fiber " + fiber.name + " threw");
        }
        fiber.state = Fiber::State::finished;
        return std::move(fiber.main);
      });
  if (!is_daemon) ++unfinished_;
  list(fiber);
  return fiber;
}

bool World::can_run(const Fiber& fiber) const noexcept {
  return fiber.state == Fiber::State::ready && !fiber.process.paused && !fiber.process.host.paused;
}

void World::list(Fiber& fiber) {
  if (fiber.listed || !can_run(fiber)) return;
  fiber.listed = true;
  fiber.place = static_cast<std::uint32_t>(runnable_.size());
  runnable_.push_back(&fiber);
}

void World::unlist(Fiber& fiber) {
  if (!fiber.listed) return;
  fiber.listed = false;
  runnable_.back()->place = fiber.place;
  runnable_[fiber.place] = runnable_.back();
  runnable_.pop_back();
}

Fiber* World::choose() {
  if (runnable_.empty()) return nullptr;
  if (setting_.config.schedule == Schedule::uniform) {
    Fiber* fiber = nullptr;
    for (int i = 0; i < 4; ++i) {
      fiber = runnable_[setting_.rng.below(static_cast<std::uint32_t>(runnable_.size()))];
      if (fiber->stalled_until <= setting_.moment.step) break;
    }
    return fiber;
  }
  const auto highest = [this] {
    const auto rank = [this](const Fiber& fiber) {
      return std::pair(fiber.stalled_until <= setting_.moment.step, fiber.priority);
    };
    Fiber* best = runnable_[0];
    for (Fiber* fiber : runnable_) {
      if (rank(*fiber) > rank(*best)) best = fiber;
    }
    return best;
  };
  if (setting_.moment.step >= horizon_) {
    changes_.clear();
    for (std::uint32_t i = 0; i < setting_.config.pct_depth; ++i) {
      changes_.push_back(horizon_ + 1 + setting_.rng.between(0, setting_.config.pct_horizon));
    }
    std::sort(changes_.rbegin(), changes_.rend());
    horizon_ += setting_.config.pct_horizon;
  }
  Fiber* fiber = highest();
  while (!changes_.empty() && changes_.back() <= setting_.moment.step) {
    changes_.pop_back();
    fiber->priority = lowest_--;
    fiber = highest();
  }
  // One that waits for others without sleeping must not keep them from running.
  if (fiber != last_run_) in_a_row_ = 0;
  if (++in_a_row_ > setting_.config.pct_patience) {
    fiber->priority = lowest_--;
    in_a_row_ = 0;
    fiber = highest();
  }
  last_run_ = fiber;
  return fiber;
}

void World::resume(Fiber& fiber) {
  auto* const runtime = abi::__cxa_get_globals();
  decltype(fiber.exceptions) mine;
  static_assert(sizeof mine == 16);
  std::memcpy(&mine, static_cast<const void*>(runtime), sizeof mine);
  std::memcpy(static_cast<void*>(runtime), &fiber.exceptions, sizeof mine);
  running_ = &fiber;
  ProcessHeap::current = fiber.heap;
  fiber.context = std::move(fiber.context).resume();
  fiber.heap = ProcessHeap::current;
  ProcessHeap::current = nullptr;
  running_ = nullptr;
  std::memcpy(&fiber.exceptions, static_cast<const void*>(runtime), sizeof mine);
  std::memcpy(static_cast<void*>(runtime), &mine, sizeof mine);
  if (fiber.state == Fiber::State::finished) {
    unlist(fiber);
    if (!fiber.daemon) --unfinished_;
    locks_.each([&](RobustLocks::Lock& lock) {
      if (lock.held && lock.holder == &fiber) {
        lock = {lock.address, lock.host, nullptr, false, true};
        wake_waiters(lock.address);
      }
    });
    Event event;
    event.did = Did::finished;
    event.host = fiber.process.host.id;
    event.fiber = fiber.id;
    setting_.trace.record(event);
  }
}

/// An instruction at which protocols synchronise: what others do just before it matters most.
void World::synchronising_instruction() {
  if (!running_) return;
  if (setting_.rng.below(1024) < setting_.config.stalls) {
    running_->stalled_until =
        setting_.moment.step + 1 + setting_.rng.below(setting_.config.stall_steps);
  }
  switch_out();
}

/// To the schedule, and back when it is this fiber's turn.
void World::switch_out() { running_->main = std::move(running_->main).resume(); }

void World::yield() {
  const Outside outside;
  instruction();
}

void World::ready(Fiber& fiber) {
  ++fiber.sleep;
  fiber.wake_ns = 0;
  fiber.waits_for = nullptr;
  fiber.state = Fiber::State::ready;
  list(fiber);
}

void World::sleep_until(Fiber& fiber, std::uint64_t ns) {
  fiber.wake_ns = ns ? ns : 1;
  sleeps_.push({fiber.wake_ns, ++order_, &fiber, ++fiber.sleep});
}

void World::wake_sleepers() {
  while (!sleeps_.empty() && sleeps_.top().ns <= setting_.moment.ns) {
    const Sleep sleep = sleeps_.top();
    sleeps_.pop();
    if (sleep.fiber->sleep != sleep.sleep || sleep.fiber->over()) continue;
    // A virtual machine whose clock stands still is woken when it goes on.
    const Host& host = sleep.fiber->process.host;
    if (host.paused && host.clock_stops) continue;
    sleep.fiber->timed_out = true;
    ready(*sleep.fiber);
  }
}

void World::wait_for(const void* what, std::uint64_t until_ns) {
  Fiber& fiber = *running_;
  fiber.timed_out = false;
  fiber.state = Fiber::State::waiting;
  fiber.waits_for = what;
  unlist(fiber);
  if (until_ns) sleep_until(fiber, until_ns);
  switch_out();
}

void World::wake_waiters(const void* what) {
  for (const auto& fiber : fibers_) {
    if (fiber->state == Fiber::State::waiting && fiber->waits_for == what) ready(*fiber);
  }
}

void World::sleep_us(std::uint64_t us) {
  const Outside outside;
  if (!running_) {
    setting_.moment.ns += us * 1'000;
    catch_up();
    return;
  }
  instruction();
  Fiber& fiber = *running_;
  fiber.core.drain();
  record(Did::slept, {}, 0, us);
  const Host& host = fiber.process.host;
  const auto drift = static_cast<std::int64_t>(us) * host.clock_ppm / 1'000;
  const std::uint64_t ns = us * 1'000 - static_cast<std::uint64_t>(drift);
  fiber.timed_out = false;
  fiber.state = Fiber::State::sleeping;
  unlist(fiber);
  sleep_until(fiber, setting_.moment.ns + ns);
  switch_out();
}

}  // namespace sim
