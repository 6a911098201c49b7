#pragma once

#include <atomic>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <span>

#include "layout.hpp"
#include "machine.hpp"
#include "sync_point.hpp"

/// How a write becomes visible and how a read becomes fresh (publish, confirm, observe).
///
/// The protocols are templates over a policy, so that one source runs on coherent memory, on memory that hosts
/// do not keep coherent, and on a simulator of it. Every access to the pool's metadata goes through a policy:
///
///   publish   the caller's earlier stores to these bytes are on their way to every host, in this order
///   confirm   the same, and on return they have provably reached the device: before any later load
///   write_back_soon   nobody waits for these stores, but they must not lie dirty in a cache until somebody else
///             writes the line
///   observe   loads after the next observe_fence are at least as fresh as this call
///
/// A line that only this host writes needs no observe here: within a host, memory is coherent.
namespace beluga {

/// How payload got where it is: by non-temporal stores, of which only the first and the last line can be left in a
/// cache, or by any other means: ordinary stores, DMA that the cache takes in.
enum class PayloadWrite { streamed, cached };

/// One line of a batch of confirms: the line that holds `address`.
struct Place {
  Point point;
  const void* address;
};

template <class V>
concept VisibilityPolicy =
    requires(std::uint64_t* p, const std::uint64_t* cp, const void* line, std::uint64_t v, RobustMutex& mutex) {
      { V::mode } -> std::convertible_to<VisibilityMode>;
      { V::load(cp) } -> std::same_as<std::uint64_t>;
      V::store(p, v);
      { V::exchange_if(p, v, v) } -> std::same_as<bool>;
      { V::fetch_or(p, v) } -> std::same_as<std::uint64_t>;
      { V::fetch_and(p, v) } -> std::same_as<std::uint64_t>;
      { V::fetch_add(p, v) } -> std::same_as<std::uint64_t>;
      V::publish(Point{}, line, std::size_t{});
      V::write_back_soon(Point{}, line);
      V::confirm(Point{}, line, std::size_t{});
      V::confirm_all(std::span<const Place>{});
      V::observe(Point{}, line, std::size_t{});
      V::observe_fence(Point{});
      V::publish_payload(line, std::size_t{}, PayloadWrite{}, true);
      V::observe_payload(line, std::size_t{}, true);
      { V::on(Point{}, Step{}) } -> std::same_as<bool>;
      V::prefetch(line);
      { V::now_ms() } -> std::same_as<std::uint64_t>;
      V::sleep_us(std::uint32_t{});
      { V::lock(mutex, std::uint32_t{}) } -> std::same_as<LockResult>;
      V::unlock(mutex);
      typename V::Mutex;
    };

/// Atomic accesses among the processes of one host.
struct NativeMemory {
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
    return __atomic_compare_exchange_n(p, &expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
  }
  template <class T>
  static T fetch_or(T* p, T bits) noexcept {
    return __atomic_fetch_or(p, bits, __ATOMIC_SEQ_CST);
  }
  template <class T>
  static T fetch_add(T* p, T more) noexcept {
    return __atomic_fetch_add(p, more, __ATOMIC_SEQ_CST);
  }
  template <class T>
  static T fetch_and(T* p, T bits) noexcept {
    return __atomic_fetch_and(p, bits, __ATOMIC_SEQ_CST);
  }
};

/// Memory that the hardware keeps coherent between everyone who maps the pool: one host, or CXL 3.x with
/// back-invalidation. Publishing is a release store, observing an acquire load; only `confirm`, the point
/// where both sides write and then read each other, costs a full fence.
struct Coherent : NativeMachine, NativeMemory {
  static constexpr VisibilityMode mode = VisibilityMode::coherent;

  static void publish(Point, const void*, std::size_t) noexcept {}
  static void write_back_soon(Point, const void*) noexcept {}
  static void confirm(Point, const void*, std::size_t) noexcept {
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  static void confirm_all(std::span<const Place>) noexcept {
    std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  /// Only starts the fetch: batches observe all their lines before they consume one.
  static void observe(Point, const void* p, std::size_t bytes) noexcept {
    const auto* at = static_cast<const std::byte*>(p);
    for (std::size_t i = 0; i < bytes; i += kLine) prefetch(at + i);
  }
  static void observe_fence(Point) noexcept {}

  static void publish_payload(const void*, std::size_t, PayloadWrite, bool) noexcept {
    std::atomic_thread_fence(std::memory_order_release);
  }
  static void observe_payload(const void*, std::size_t, bool) noexcept {
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
