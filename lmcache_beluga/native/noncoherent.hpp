#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "visibility.hpp"

namespace beluga {

/// Memory that hosts do not keep coherent: any CXL 2.0 pool behind a switch.
///
/// A host may keep a stale clean line for ever, and write a dirty one back at any moment. `Machine` supplies the
/// instructions; the sequences are here, once, for real CPUs and for the simulator:
///
///   publish   write_back each line (CLWB), store_fence
///   confirm   flush each line, full_fence, load each back, full_fence
///   observe   flush each line;  observe_fence: full_fence
///
/// A confirm writes back by itself, so it needs no publish before it. Its first fence keeps the load from being
/// answered by the line that is about to be flushed, or by the store buffer; the load is answered by the device,
/// behind the write of the same line; the last fence keeps what follows, be it a load or the flush of another
/// line (which nothing else orders after a load), from running ahead of that answer.
/// SFENCE in place of the fence of observe is not enough: it does not order later loads.
template <class Machine>
struct Noncoherent : Machine {
  static constexpr VisibilityMode mode = VisibilityMode::noncoherent;

  static void publish(Point point, const void* p, std::size_t bytes) noexcept {
    if (Machine::on(point, Step::publish_write_back)) {
      for_lines(p, bytes, [](const void* line) { Machine::write_back(line); });
    }
    if (Machine::on(point, Step::publish_fence)) Machine::store_fence();
  }

  static void write_back_soon(Point point, const void* p) noexcept {
    if (Machine::on(point, Step::publish_write_back)) Machine::write_back(p);
  }

  static void confirm(Point point, const void* p, std::size_t bytes) noexcept {
    const bool flush = Machine::on(point, Step::confirm_flush);
    if (flush) for_lines(p, bytes, [](const void* line) { Machine::flush(line); });
    if (Machine::on(point, Step::confirm_fence)) Machine::full_fence();
    if (Machine::on(point, Step::confirm_load)) {
      for_lines(p, bytes, [](const void* line) { Machine::load_back(line); });
    }
    if (Machine::on(point, Step::confirm_last_fence)) Machine::full_fence();
  }

  static void confirm_all(std::span<const Place> places) noexcept {
    if (places.empty()) return;
    for (const Place& place : places) {
      if (Machine::on(place.point, Step::confirm_flush)) Machine::flush(place.address);
    }
    if (Machine::on(places[0].point, Step::confirm_fence)) Machine::full_fence();
    for (const Place& place : places) {
      if (Machine::on(place.point, Step::confirm_load)) Machine::load_back(place.address);
    }
    if (Machine::on(places[0].point, Step::confirm_last_fence)) Machine::full_fence();
  }

  static void observe(Point point, const void* p, std::size_t bytes) noexcept {
    if (!Machine::on(point, Step::observe_flush)) return;
    for_lines(p, bytes, [](const void* line) { Machine::flush(line); });
  }
  static void observe_fence(Point point) noexcept {
    if (Machine::on(point, Step::observe_fence)) Machine::full_fence();
  }

  /// Payload that a CPU or a GPU has written: out of this host's caches, if it can lie there, and its last line
  /// seen on the device. That proves the arrival of one line; for the rest it relies on the device taking the
  /// payload writes of a host in their order.
  static void publish_payload(const void* p, std::size_t bytes, PayloadWrite how, bool cached) noexcept {
    if (bytes == 0) return;
    if (cached && Machine::on(Point::payload, Step::publish_write_back)) {
      if (how == PayloadWrite::cached) {
        for_lines(p, bytes, [](const void* line) { Machine::flush(line); });
      } else {
        Machine::flush(p);
        Machine::flush(static_cast<const std::byte*>(p) + bytes - 1);
      }
    }
    if (Machine::on(Point::payload, Step::publish_fence)) Machine::full_fence();
    // Flushed once more now that all has left the CPU: the last line may have left first, come back by a prefetch
    // while others had not left yet, and would answer the load.
    const auto* last = static_cast<const std::byte*>(p) + bytes - 1;
    if (cached) {
      if (Machine::on(Point::payload, Step::confirm_flush)) Machine::flush(last);
      if (Machine::on(Point::payload, Step::confirm_fence)) Machine::full_fence();
    }
    if (Machine::on(Point::payload, Step::confirm_load)) Machine::load_back(last);
    if (Machine::on(Point::payload, Step::confirm_last_fence)) Machine::full_fence();
  }
  /// Payload that a CPU or a GPU is about to read: nothing stale of it stays in this host's caches.
  static void observe_payload(const void* p, std::size_t bytes, bool cached) noexcept {
    if (!cached) return;
    observe(Point::payload, p, bytes);
    observe_fence(Point::payload);
  }

 private:
  template <class Each>
  static void for_lines(const void* p, std::size_t bytes, Each&& each) noexcept {
    const auto address = reinterpret_cast<std::uintptr_t>(p);
    const std::uintptr_t end = address + bytes;
    for (std::uintptr_t line = address & ~(std::uintptr_t{kLine} - 1); line < end; line += kLine) {
      each(reinterpret_cast<const void*>(line));
    }
  }
};

}  // namespace beluga
