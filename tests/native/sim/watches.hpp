#pragma once

#include <cstdint>
#include <functional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "device.hpp"

namespace sim {

/// A write to the device that a checker asked to see.
struct Seen {
  enum class Stage : std::uint8_t {
    issued,   // the instruction was executed; the value may be in the store buffer still
    visible,  // it is in the host's cache (or left for the device): its processes see it
    arrived   // it lies on the device, and changed what was there
  };
  Stage stage;
  std::uint16_t host;
  std::uint16_t fiber;  // 0xffff where nobody in particular did it
  std::uint32_t bytes;
  std::uint64_t offset;
  std::uint64_t value;   // up to 8 bytes
  std::uint64_t before;  // arrived, exchange_if and fetch: what was there; else 0
};

/// Callbacks on writes to ranges of the device.
class Watches {
 public:
  using Callback = std::function<void(const Seen&)>;

  explicit Watches(const Device& device) : flags_(device.lines(), 0) {}

  void add(std::uint64_t offset, std::uint64_t bytes, Callback callback) {
    const auto index = static_cast<std::uint32_t>(watches_.size());
    watches_.push_back({offset, offset + bytes, std::move(callback)});
    for (std::uint64_t line = offset / kLineBytes; line * kLineBytes < offset + bytes; ++line) {
      flags_[line] = 1;
      by_line_[static_cast<std::uint32_t>(line)].push_back(index);
    }
  }

  bool any(std::uint32_t line) const noexcept { return flags_[line] != 0; }

  void tell(const Seen& seen) {
    const auto it = by_line_.find(static_cast<std::uint32_t>(seen.offset / kLineBytes));
    if (it == by_line_.end()) return;
    for (std::size_t i = 0; i < it->second.size(); ++i) {
      const Watch& watch = watches_[it->second[i]];
      if (seen.offset < watch.end && watch.begin < seen.offset + seen.bytes) watch.callback(seen);
    }
  }

 private:
  struct Watch {
    std::uint64_t begin, end;
    Callback callback;
  };
  std::vector<std::uint8_t> flags_;
  std::vector<Watch> watches_;
  std::unordered_map<std::uint32_t, std::vector<std::uint32_t>> by_line_;
};

}  // namespace sim
