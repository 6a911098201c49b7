#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "cache.hpp"
#include "fabric.hpp"
#include "setting.hpp"

namespace sim {

/// How one host sees the device: through its cache, and a fabric whose writes arrive later.
class HostMemory {
 public:
  struct Answer {
    std::uint64_t value;
    From from;
    std::uint64_t on_device;
  };

  HostMemory(Setting& setting, std::uint16_t host)
      : setting_(setting), host_(host), cache_(setting.device.lines()), fabric_(setting, host) {}

  Answer read(std::uint64_t offset, std::uint32_t bytes) {
    const std::uint32_t number = line_of(offset);
    std::uint64_t on_device = 0;
    if (const CachedLine* line = cache_.find(number)) {
      std::uint64_t value = 0;
      std::memcpy(&value, line->data + offset % kLineBytes, bytes);
      std::memcpy(&on_device, setting_.device.read(offset), bytes);
      const bool stale = !line->dirty && value != on_device && !fabric_.in_flight(number);
      return {value, stale ? From::stale_cache : From::cache, on_device};
    }
    std::uint64_t value = 0;
    const CachedLine& line = fill(number);
    std::memcpy(&value, line.data + offset % kLineBytes, bytes);
    return {value, From::device, value};
  }

  /// A store takes effect: the line is fetched if it must be, and is dirty from now on.
  void write(std::uint64_t offset, std::uint32_t bytes, const void* data) {
    CachedLine* line = cache_.find(line_of(offset));
    if (!line) line = &fill(line_of(offset));
    std::memcpy(line->data + offset % kLineBytes, data, bytes);
    cache_.set_dirty(*line, true);
  }

  /// A write that goes past the cache: what the cache has of the line leaves before it.
  void write_around(std::uint32_t number, ByteMask mask, const std::byte* data) {
    if (CachedLine* line = cache_.find(number)) {
      if (line->dirty && mask != kAllBytes) fabric_.send(number, kAllBytes, line->data);
      cache_.remove(*line);
    }
    fabric_.send(number, mask, data);
  }

  void clean(std::uint32_t number) {  // CLWB
    CachedLine* line = cache_.find(number);
    if (line && line->dirty) {
      fabric_.send(number, kAllBytes, line->data);
      cache_.set_dirty(*line, false);
    }
    if (line && setting_.rng.one_in(8)) cache_.remove(*line);  // a CPU may do that
    flushed_[flushes_++ % flushed_.size()] = number;
  }
  void flush(std::uint32_t number) {  // CLFLUSHOPT
    if (CachedLine* line = cache_.find(number)) {
      if (line->dirty) fabric_.send(number, kAllBytes, line->data);
      cache_.remove(*line);
    }
    flushed_[flushes_++ % flushed_.size()] = number;
    if (setting_.rng.below(1024) < setting_.config.refetch) prefetch(number);
  }
  void load_line(std::uint32_t number) {
    if (!cache_.find(number)) fill(number);
  }
  bool cached(std::uint32_t number) { return cache_.find(number) != nullptr; }

  /// A read by DMA: it snoops this cache, and does not fill it.
  void snoop(std::uint32_t number, std::byte* out) {
    if (const CachedLine* line = cache_.find(number)) {
      std::memcpy(out, line->data, kLineBytes);
      return;
    }
    fabric_.arrive_before_read(number);
    std::memcpy(out, setting_.device.line(number), kLineBytes);
  }

  // What the environment does.

  bool evict_one() {
    if (cache_.dirty_count() == 0) return false;
    evict(cache_.dirty_at(setting_.rng.below(cache_.dirty_count())));
    return true;
  }
  void evict_all() {
    while (evict_one()) {
    }
  }
  bool drop_one() {
    if (cache_.clean_count() == 0) return false;
    CachedLine& line = cache_.clean_at(setting_.rng.below(cache_.clean_count()));
    note(Did::dropped, line.number);
    cache_.remove(line);
    return true;
  }
  bool prefetch(std::uint32_t number) {
    if (number >= setting_.device.lines() || cache_.find(number)) return false;
    note(Did::prefetched, number);
    fill(number);
    return true;
  }
  bool arrive_one() {
    if (fabric_.idle()) return false;
    fabric_.arrive(setting_.rng.below(fabric_.lines()));
    return true;
  }
  Fabric& fabric() noexcept { return fabric_; }

  /// Lines that are about to be interesting to others, drawn at random; kNone: there is none.
  std::uint32_t some_dirty_line() noexcept {
    if (cache_.dirty_count() == 0) return kNone;
    return cache_.dirty_at(setting_.rng.below(cache_.dirty_count())).number;
  }
  std::uint32_t some_line_in_flight() noexcept {
    if (fabric_.idle()) return kNone;
    return fabric_.line_at(setting_.rng.below(fabric_.lines()));
  }
  std::uint32_t some_flushed_line() noexcept {
    const auto n = static_cast<std::uint32_t>(std::min<std::uint64_t>(flushes_, flushed_.size()));
    return n == 0 ? kNone : flushed_[setting_.rng.below(n)];
  }

  /// Power-off: an arbitrary part of what is dirty or on its way reaches the device.
  void power_off() {
    fabric_.lose_some();
    while (cache_.dirty_count() != 0) {
      CachedLine& line = cache_.dirty_at(setting_.rng.below(cache_.dirty_count()));
      if (setting_.rng.one_in(2)) {
        evict(line);
        fabric_.arrive_all();
      } else {
        note(Did::lost, line.number);
        cache_.remove(line);
      }
    }
    while (cache_.clean_count() != 0) cache_.remove(cache_.clean_at(0));
  }

  /// The line as this host would read it, without any effect.
  void peek(std::uint32_t number, std::byte* out) noexcept {
    if (const CachedLine* line = cache_.find(number)) {
      std::memcpy(out, line->data, kLineBytes);
      return;
    }
    std::memcpy(out, setting_.device.line(number), kLineBytes);
    fabric_.overlay(number, out);
  }

  static std::uint32_t line_of(std::uint64_t offset) noexcept {
    return static_cast<std::uint32_t>(offset / kLineBytes);
  }

 private:
  /// A miss, of whatever kind: it reaches the device behind this host's own writes of the line.
  CachedLine& fill(std::uint32_t number) {
    fabric_.arrive_before_read(number);
    return cache_.insert(number, setting_.device.line(number));
  }
  void evict(CachedLine& line) {
    note(Did::evicted, line.number);
    fabric_.send(line.number, kAllBytes, line.data);
    if (setting_.rng.one_in(4)) {
      cache_.set_dirty(line, false);
    } else {
      cache_.remove(line);
    }
  }
  void note(Did did, std::uint32_t number) {
    Event event;
    event.did = did;
    event.space = Space::device;
    event.host = host_;
    event.at = std::uint64_t{number} * kLineBytes;
    setting_.trace.record(event);
  }

  Setting& setting_;
  const std::uint16_t host_;
  Cache cache_;
  Fabric fabric_;
  std::array<std::uint32_t, 16> flushed_{};
  std::uint64_t flushes_ = 0;
};

}  // namespace sim
