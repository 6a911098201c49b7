#include <cstring>

#include "world.hpp"

/// What happens without anybody's instruction.
namespace sim {

bool World::environment_acts() {
  if (hosts_.empty()) return false;
  const Rates& rates = setting_.config.rates;
  const std::uint32_t sum = rates.drain + rates.complete + rates.arrive + rates.evict + rates.drop +
                            rates.prefetch + rates.dma;
  if (sum == 0) return false;
  std::uint32_t drawn = setting_.rng.below(sum);
  const auto is = [&drawn](std::uint32_t rate) {
    if (drawn < rate) return true;
    drawn -= rate;
    return false;
  };
  if (is(rates.drain) || is(rates.complete)) {
    // Both are a core's; `drawn` is what is left of the one that was drawn.
    if (busy_.empty()) return false;
    const std::uint32_t i = setting_.rng.below(static_cast<std::uint32_t>(busy_.size()));
    Fiber& fiber = *busy_[i];
    bool acted = setting_.rng.below(rates.drain + rates.complete) < rates.drain
                     ? fiber.core.drain_one()
                     : fiber.core.answer_one();
    if (fiber.core.idle()) {
      fiber.busy = false;
      busy_[i] = busy_.back();
      busy_.pop_back();
    }
    return acted;
  }
  if (is(rates.dma)) return dma_goes_on();
  Host& host = *hosts_[setting_.rng.below(static_cast<std::uint32_t>(hosts_.size()))];
  if (!host.alive) return false;
  if (is(rates.arrive)) return host.memory.arrive_one();
  if (is(rates.evict)) return host.memory.evict_one();
  if (is(rates.drop)) return host.memory.drop_one();
  return prefetch_something(host);
}

bool World::prefetch_something(Host& host) {
  Rng& rng = setting_.rng;
  const Host& other = *hosts_[rng.below(static_cast<std::uint32_t>(hosts_.size()))];
  std::uint32_t line = kNone;
  switch (rng.below(4)) {
    case 0: {
      static constexpr std::int32_t kNear[] = {0, 0, 0, 1, 1, -1, 2, 3};
      if (recent_count_ < kRecent) return false;
      line = recent_[rng.below(kRecent)] + static_cast<std::uint32_t>(kNear[rng.below(8)]);
      break;
    }
    case 1:
      line = host.memory.some_flushed_line();
      break;
    case 2:
      line = const_cast<Host&>(other).memory.some_dirty_line();
      break;
    default:
      line = const_cast<Host&>(other).memory.some_line_in_flight();
  }
  return line != kNone && host.memory.prefetch(line);
}

bool World::dma_goes_on() {
  if (dmas_.empty()) return false;
  const std::uint32_t i = setting_.rng.below(static_cast<std::uint32_t>(dmas_.size()));
  Dma& dma = *dmas_[i];
  advance(dma, setting_);
  if (!dma.done) return true;
  const std::unique_ptr<Dma> finished = std::move(dmas_[i]);
  dmas_[i] = std::move(dmas_.back());
  dmas_.pop_back();
  if (finished->copy_to && finished->process->alive) {
    std::memcpy(finished->copy_to, finished->data.data(), finished->data.size());
  }
  wake_waiters(finished.get());
  return true;
}

void World::mark_busy(Fiber& fiber) {
  if (fiber.busy) return;
  fiber.busy = true;
  busy_.push_back(&fiber);
}

/// Nothing stays in a store buffer or on its way for ever; one of each is looked at in a step.
void World::age() {
  ++turn_;
  if (!hosts_.empty()) hosts_[turn_ % hosts_.size()]->memory.fabric().arrive_due();
  if (!busy_.empty() && setting_.moment.ns > setting_.config.store_lag_ns) {
    Fiber& fiber = *busy_[turn_ % busy_.size()];
    const std::uint64_t oldest = setting_.moment.ns - setting_.config.store_lag_ns;
    while (fiber.core.older_than(oldest)) fiber.core.drain_one();
  }
}

/// Time has jumped.
void World::catch_up() {
  for (Fiber* fiber : busy_) {
    const std::uint64_t lag = setting_.config.store_lag_ns;
    while (setting_.moment.ns > lag && fiber->core.older_than(setting_.moment.ns - lag)) {
      fiber->core.drain_one();
    }
  }
  for (const auto& host : hosts_) host->memory.fabric().arrive_due();
}

}  // namespace sim
