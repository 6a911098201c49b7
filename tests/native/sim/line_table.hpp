#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace sim {

inline constexpr std::uint32_t kNone = 0xffffffff;

/// An index per line of the device, none at first. Zero pages that nobody touched cost nothing, so
/// a world on a large device starts at once.
class LineTable {
 public:
  explicit LineTable(std::size_t lines)
      : entries_(static_cast<std::uint32_t*>(std::calloc(lines, sizeof(std::uint32_t)))) {
    if (!entries_) throw std::bad_alloc();
  }
  std::uint32_t get(std::uint32_t line) const noexcept { return entries_[line] - 1; }
  void set(std::uint32_t line, std::uint32_t index) noexcept { entries_[line] = index + 1; }

 private:
  struct Free {
    void operator()(std::uint32_t* p) const noexcept { std::free(p); }
  };
  std::unique_ptr<std::uint32_t[], Free> entries_;
};

}  // namespace sim
