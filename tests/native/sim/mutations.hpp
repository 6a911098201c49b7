#pragma once

#include <atomic>
#include <cstddef>

#include "sync_point.hpp"

namespace sim {

/// Steps of the protocols that are switched off, and those that were ever asked for: what there is
/// to mutate.
class Mutations {
 public:
  static bool on(beluga::Point point, beluga::Step step) noexcept {
    const std::size_t i = index(point, step);
    if (!asked_[i].load(std::memory_order_relaxed))
      asked_[i].store(true, std::memory_order_relaxed);
    return !off_[i];
  }
  static void switch_off(beluga::Point point, beluga::Step step) noexcept {
    off_[index(point, step)] = true;
  }
  static void restore() noexcept {
    for (bool& off : off_) off = false;
  }
  static bool asked(beluga::Point point, beluga::Step step) noexcept {
    return asked_[index(point, step)].load(std::memory_order_relaxed);
  }

 private:
  static constexpr std::size_t index(beluga::Point point, beluga::Step step) noexcept {
    return static_cast<std::size_t>(point) * beluga::kSteps + static_cast<std::size_t>(step);
  }
  static inline bool off_[beluga::kPoints * beluga::kSteps] = {};
  static inline std::atomic<bool> asked_[beluga::kPoints * beluga::kSteps] = {};
};

}  // namespace sim
