#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <vector>

#include "line_table.hpp"
#include "setting.hpp"

namespace sim {

/// A bit per byte of a line.
using ByteMask = std::uint64_t;
inline constexpr ByteMask kAllBytes = ~ByteMask{0};

/// The writes of one host that have left it and are on their way to the device. Those to one line
/// arrive in order, others in any order; none stays for longer than the lag. With
/// `payload_in_order`, payload writes arrive in the order in which they left, and a read of a
/// payload line waits for those before it.
class Fabric {
 public:
  Fabric(Setting& setting, std::uint16_t host)
      : setting_(setting),
        host_(host),
        first_(setting.device.lines()),
        last_(setting.device.lines()) {}

  void send(std::uint32_t line, ByteMask mask, const std::byte* data) {
    std::uint32_t at;
    if (free_.empty()) {
      at = static_cast<std::uint32_t>(slab_.size());
      slab_.emplace_back();
    } else {
      at = free_.back();
      free_.pop_back();
    }
    Flight& flight = slab_[at];
    flight.line = line;
    flight.next = kNone;
    flight.mask = mask;
    flight.serial = ++serial_;
    flight.due = setting_.moment.ns + setting_.config.fabric_lag_ns;
    flight.payload = is_payload(line);
    std::memcpy(flight.data, data, kLineBytes);
    const std::uint32_t before = last_.get(line);
    if (before == kNone) {
      first_.set(line, at);
      enlist(at);
    } else {
      slab_[before].next = at;
    }
    last_.set(line, at);
    order_.push_back({at, flight.serial});
    if (flight.payload) payload_.push_back({at, flight.serial});
  }

  bool in_flight(std::uint32_t line) const noexcept { return first_.get(line) != kNone; }
  /// Lines with a write in flight.
  std::uint32_t lines() const noexcept { return static_cast<std::uint32_t>(heads_.size()); }
  std::uint32_t line_at(std::uint32_t i) const noexcept { return slab_[heads_[i]].line; }

  /// The oldest write to the line_at(i) arrives.
  void arrive(std::uint32_t i) { deliver(heads_[i]); }
  /// Every write to this line arrives.
  void arrive_all_of(std::uint32_t line) {
    while (first_.get(line) != kNone) deliver(first_.get(line));
  }
  /// A read that goes to the device: it is behind the host's own writes of that line and, of a
  /// payload line, behind all its payload writes that have left.
  void arrive_before_read(std::uint32_t line) {
    if (is_payload(line)) {
      while (!payload_.empty()) {
        const Ticket ticket = payload_.front();
        payload_.pop_front();
        if (slab_[ticket.at].serial == ticket.serial) deliver_one(ticket.at);
      }
    }
    arrive_all_of(line);
  }
  /// Those that have been on their way for as long as they can be.
  void arrive_due() {
    while (!order_.empty()) {
      const Ticket ticket = order_.front();
      if (slab_[ticket.at].serial == ticket.serial) {
        if (slab_[ticket.at].due > setting_.moment.ns) return;
        deliver(ticket.at);
      }
      order_.pop_front();
    }
  }
  bool idle() const noexcept { return heads_.empty(); }
  void arrive_all() {
    while (!heads_.empty()) deliver(heads_.back());
  }
  /// Power-off: of what is on its way, an arbitrary part is lost.
  void lose_some() {
    while (!heads_.empty()) {
      const std::uint32_t at = heads_[setting_.rng.below(lines())];
      if (setting_.rng.one_in(2)) {
        deliver(at);
      } else {
        note(Did::lost, slab_[at]);
        take(at);
      }
    }
  }

  /// What this host would read: the device under everything that is on its way.
  void overlay(std::uint32_t line, std::byte* data) const noexcept {
    for (std::uint32_t at = first_.get(line); at != kNone; at = slab_[at].next) {
      apply(slab_[at], data);
    }
  }

 private:
  struct Flight {
    std::uint32_t line = 0;
    std::uint32_t next = kNone;  // the next write to the same line
    std::uint32_t place = 0;     // in heads_
    bool payload = false;
    ByteMask mask = 0;
    std::uint64_t due = 0;
    std::uint64_t serial = 0;  // 0: free
    alignas(8) std::byte data[kLineBytes];
  };
  struct Ticket {
    std::uint32_t at;
    std::uint64_t serial;
  };

  bool is_payload(std::uint32_t line) const noexcept {
    const Config& config = setting_.config;
    const std::uint64_t offset = std::uint64_t{line} * kLineBytes;
    return config.payload_in_order && offset >= config.payload_begin && offset < config.payload_end;
  }
  static void apply(const Flight& flight, std::byte* data) noexcept {
    if (flight.mask == kAllBytes) {
      std::memcpy(data, flight.data, kLineBytes);
      return;
    }
    for (std::uint32_t i = 0; i < kLineBytes; ++i) {
      if (flight.mask >> i & 1) data[i] = flight.data[i];
    }
  }
  void note(Did did, const Flight& flight) {
    Event event;
    event.did = did;
    event.space = Space::device;
    event.host = host_;
    event.at = std::uint64_t{flight.line} * kLineBytes;
    setting_.trace.record(event);
  }

  void deliver(std::uint32_t at) {
    if (slab_[at].payload) {
      while (payload_.front().at != at || payload_.front().serial != slab_[at].serial) {
        const Ticket ticket = payload_.front();
        payload_.pop_front();
        if (slab_[ticket.at].serial == ticket.serial) deliver_one(ticket.at);
      }
      payload_.pop_front();
    }
    deliver_one(at);
  }
  void deliver_one(std::uint32_t at) {
    const Flight& flight = slab_[at];
    std::byte* const there = setting_.device.write(std::uint64_t{flight.line} * kLineBytes);
    note(Did::arrived, flight);
    if (!setting_.watches.any(flight.line)) {
      apply(flight, there);
      take(at);
      return;
    }
    alignas(8) std::byte before[kLineBytes];
    std::memcpy(before, there, kLineBytes);
    apply(flight, there);
    const std::uint64_t offset = std::uint64_t{flight.line} * kLineBytes;
    take(at);
    for (std::uint32_t i = 0; i < kLineBytes; i += 8) {
      std::uint64_t old, now;
      std::memcpy(&old, before + i, 8);
      std::memcpy(&now, there + i, 8);
      if (old != now)
        setting_.watches.tell({Seen::Stage::arrived, host_, 0xffff, 8, offset + i, now, old});
    }
  }
  /// Off the lists. It is the oldest of its line.
  void take(std::uint32_t at) {
    Flight& flight = slab_[at];
    slab_[heads_.back()].place = flight.place;
    heads_[flight.place] = heads_.back();
    heads_.pop_back();
    first_.set(flight.line, flight.next);
    if (flight.next == kNone) {
      last_.set(flight.line, kNone);
    } else {
      enlist(flight.next);
    }
    flight.serial = 0;
    free_.push_back(at);
  }
  void enlist(std::uint32_t at) {
    slab_[at].place = static_cast<std::uint32_t>(heads_.size());
    heads_.push_back(at);
  }

  Setting& setting_;
  const std::uint16_t host_;
  LineTable first_, last_;  // by line: the oldest and the newest write in flight
  std::vector<Flight> slab_;
  std::vector<std::uint32_t> free_;
  std::vector<std::uint32_t> heads_;  // the oldest of each line
  std::deque<Ticket> order_;          // all, by age; some have arrived
  std::deque<Ticket> payload_;
  std::uint64_t serial_ = 0;
};

}  // namespace sim
