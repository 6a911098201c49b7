#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "device.hpp"
#include "line_table.hpp"

namespace sim {

struct CachedLine {
  std::uint32_t number = 0;
  std::uint32_t place = 0;  // in the list of dirty or of clean lines
  bool dirty = false;
  alignas(8) std::byte data[kLineBytes];
};

/// A host's cache: whole lines, found by number, and lists of the dirty and the clean to draw from.
class Cache {
 public:
  explicit Cache(std::uint32_t lines) : index_(lines) {}

  CachedLine* find(std::uint32_t number) noexcept {
    const std::uint32_t at = index_.get(number);
    return at == kNone ? nullptr : &slab_[at];
  }
  /// The line must not be there. Pointers to other lines end here.
  CachedLine& insert(std::uint32_t number, const std::byte* data) {
    std::uint32_t at;
    if (free_.empty()) {
      at = static_cast<std::uint32_t>(slab_.size());
      slab_.emplace_back();
    } else {
      at = free_.back();
      free_.pop_back();
    }
    CachedLine& line = slab_[at];
    line.number = number;
    line.dirty = false;
    std::memcpy(line.data, data, kLineBytes);
    index_.set(number, at);
    enlist(at);
    return line;
  }
  void set_dirty(CachedLine& line, bool dirty) {
    if (line.dirty == dirty) return;
    delist(line);
    line.dirty = dirty;
    enlist(index_.get(line.number));
  }
  void remove(CachedLine& line) {
    const std::uint32_t at = index_.get(line.number);
    delist(line);
    index_.set(line.number, kNone);
    free_.push_back(at);
  }

  std::uint32_t dirty_count() const noexcept { return static_cast<std::uint32_t>(dirty_.size()); }
  std::uint32_t clean_count() const noexcept { return static_cast<std::uint32_t>(clean_.size()); }
  CachedLine& dirty_at(std::uint32_t i) noexcept { return slab_[dirty_[i]]; }
  CachedLine& clean_at(std::uint32_t i) noexcept { return slab_[clean_[i]]; }

 private:
  void enlist(std::uint32_t at) {
    auto& list = slab_[at].dirty ? dirty_ : clean_;
    slab_[at].place = static_cast<std::uint32_t>(list.size());
    list.push_back(at);
  }
  void delist(const CachedLine& line) {
    auto& list = line.dirty ? dirty_ : clean_;
    slab_[list.back()].place = line.place;
    list[line.place] = list.back();
    list.pop_back();
  }

  LineTable index_;
  std::vector<CachedLine> slab_;
  std::vector<std::uint32_t> free_, dirty_, clean_;
};

}  // namespace sim
