#pragma once

#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>

#include "layout.hpp"

/// How a write becomes visible and how a read becomes fresh (DESIGN: publish, observe, confirm).
///
/// The protocols are templates over a policy, so that one source runs on coherent memory, on memory that hosts
/// do not keep coherent, and on a simulator of it. Every access to the pool's metadata goes through a policy.
namespace beluga {

template <class V>
concept VisibilityPolicy = requires(std::uint64_t* p, const std::uint64_t* cp, const void* line, std::uint64_t v) {
  { V::mode } -> std::convertible_to<VisibilityMode>;
  { V::load(cp) } -> std::same_as<std::uint64_t>;
  V::store(p, v);
  { V::exchange_if(p, v, v) } -> std::same_as<bool>;
  V::publish(line, std::size_t{});
  V::confirm(line);
  V::confirm_all(&line, std::size_t{});
  V::observe(line, std::size_t{});
  V::observe_fence();
  V::publish_payload(line, std::size_t{});
  V::observe_payload(line, std::size_t{});
};

/// Memory that the hardware keeps coherent between everyone who maps the pool: one host, or CXL 3.x with
/// back-invalidation. Publishing is a release store, observing an acquire load; only `confirm`, the point
/// where both sides write and then read each other, costs a full fence.
struct Coherent {
  static constexpr VisibilityMode mode = VisibilityMode::coherent;

  template <class T>
  static T load(const T* p) noexcept {
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
  }
  template <class T>
  static void store(T* p, T value) noexcept {
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
  }
  /// Compare-and-swap among the processes of one host; never a means between hosts.
  template <class T>
  static bool exchange_if(T* p, T expected, T desired) noexcept {
    return __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
  }

  /// Makes the caller's stores to these bytes visible to every host, in order before its later publishes.
  static void publish(const void*, std::size_t) noexcept {}
  /// Returns once a published line has provably reached the device, before any later load of the caller.
  static void confirm(const void*) noexcept { std::atomic_thread_fence(std::memory_order_seq_cst); }
  /// The same for many lines at once.
  static void confirm_all(const void* const*, std::size_t) noexcept { confirm(nullptr); }
  /// Drops this host's copy of the lines, so that loads after the next observe_fence() are fresh. Here it
  /// only starts the fetch: batches observe all their lines before they consume one.
  static void observe(const void* p, std::size_t bytes) noexcept {
    const auto* at = static_cast<const std::byte*>(p);
    for (std::size_t i = 0; i < bytes; i += kLine) __builtin_prefetch(at + i);
  }
  static void observe_fence() noexcept {}

  static void publish_payload(const void*, std::size_t) noexcept {
    std::atomic_thread_fence(std::memory_order_release);
  }
  static void observe_payload(const void*, std::size_t) noexcept {
    std::atomic_thread_fence(std::memory_order_acquire);
  }
};
static_assert(VisibilityPolicy<Coherent>);

/// Copies metadata that another writer may be changing: word by word, so that a torn copy is harmless and
/// found by the caller's sequence or CRC. Both sides 8-byte aligned, `bytes` a multiple of 8.
template <class V>
void load_words(void* to, const void* from, std::size_t bytes) noexcept {
  auto* out = static_cast<std::uint64_t*>(to);
  const auto* in = static_cast<const std::uint64_t*>(from);
  for (std::size_t i = 0; i < bytes / 8; ++i) out[i] = V::load(in + i);
}

template <class V>
void store_words(void* to, const void* from, std::size_t bytes) noexcept {
  auto* out = static_cast<std::uint64_t*>(to);
  const auto* in = static_cast<const std::uint64_t*>(from);
  for (std::size_t i = 0; i < bytes / 8; ++i) V::store(out + i, in[i]);
}

}  // namespace beluga
