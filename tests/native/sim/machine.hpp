#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "mutations.hpp"
#include "robust_mutex.hpp"
#include "world.hpp"

namespace sim {

/// The machine under `beluga::Noncoherent<sim::Machine>`: acts for the fiber that runs. Each of its
/// instructions is a step of the schedule. Outside of any fiber, loads and stores act on the device
/// itself, and flushes and fences do nothing: that is for setting a scene.
struct Machine {
  using Mutex = sim::Mutex;

  template <class T>
  static T load(const T* p) noexcept {
    return from_bits<T>(World::now().load(p, sizeof(T)));
  }
  template <class T>
  static void store(T* p, T value) noexcept {
    World::now().store(p, sizeof(T), to_bits(value));
  }
  template <class T>
  static bool exchange_if(T* p, T expected, T desired) noexcept {
    return World::now().exchange_if(p, sizeof(T), to_bits(expected), to_bits(desired));
  }
  template <class T>
  static T fetch_or(T* p, T bits) noexcept {
    return from_bits<T>(World::now().fetch(p, sizeof(T), ~std::uint64_t{0}, to_bits(bits)));
  }
  template <class T>
  static T fetch_add(T* p, T more) noexcept {
    T old = load(p);
    while (!exchange_if(p, old, static_cast<T>(old + more))) old = load(p);
    return old;
  }
  template <class T>
  static T fetch_and(T* p, T bits) noexcept {
    return from_bits<T>(World::now().fetch(p, sizeof(T), to_bits(bits), 0));
  }

  static void write_back(const void* p) noexcept { World::now().write_back(p); }
  static void flush(const void* p) noexcept { World::now().flush(p); }
  static void load_back(const void* p) noexcept { World::now().load_back(p); }
  static void store_fence() noexcept { World::now().store_fence(); }
  static void full_fence() noexcept { World::now().full_fence(); }
  static void prefetch(const void* p) noexcept { World::now().prefetch(p); }

  static bool on(beluga::Point point, beluga::Step step) noexcept {
    return Mutations::on(point, step);
  }

  static std::uint64_t now_ms() noexcept { return World::now().now_ms(); }
  static void sleep_us(std::uint32_t us) noexcept { World::now().sleep_us(us); }

  static beluga::LockResult lock(beluga::RobustMutex& mutex, std::uint32_t timeout_ms) noexcept {
    return World::now().lock(&mutex, timeout_ms);
  }
  static void unlock(beluga::RobustMutex& mutex) noexcept { World::now().unlock(&mutex); }

 private:
  template <class T>
  static std::uint64_t to_bits(T value) noexcept {
    static_assert(std::is_trivially_copyable_v<T> && std::has_single_bit(sizeof(T)) &&
                  sizeof(T) <= 8);
    std::uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
  }
  template <class T>
  static T from_bits(std::uint64_t bits) noexcept {
    static_assert(std::is_trivially_copyable_v<T> && std::has_single_bit(sizeof(T)) &&
                  sizeof(T) <= 8);
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
};

}  // namespace sim
