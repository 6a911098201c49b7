#pragma once

#include <cstdint>

#include "cache_instructions.hpp"
#include "noncoherent.hpp"
#include "visibility.hpp"

#ifndef FUZZ_POLICY
#define FUZZ_POLICY Coherent
#endif

namespace fuzz {

using beluga::CacheMachine;
using beluga::Coherent;
using beluga::Noncoherent;

/// Somebody who writes to the pool while the protocols run: called between two loads of theirs.
class Neighbour {
 public:
  virtual ~Neighbour() = default;
  virtual void strike() = 0;
};

inline Neighbour* neighbour = nullptr;
/// Loads until the neighbour strikes; 0: never.
inline std::uint64_t loads_to_strike = 0;
/// The clock: it moves by what the protocols sleep and by what an input adds.
inline std::uint64_t now_us = 1'000'000'000;

/// Memory in which what was checked may be something else when it is used: any load of the protocols may come after
/// a write of the neighbour.
struct Hostile : FUZZ_POLICY {
  template <class T>
  static T load(const T* p) noexcept {
    if (loads_to_strike != 0 && --loads_to_strike == 0) neighbour->strike();
    return FUZZ_POLICY::load(p);
  }
  static std::uint64_t now_ms() noexcept { return now_us / 1000; }
  static void sleep_us(std::uint32_t us) noexcept { now_us += us; }
};

}  // namespace fuzz
