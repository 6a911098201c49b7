#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace fuzz {

/// The bytes of one input, taken from the front. Past their end everything is 0.
class Input {
 public:
  Input(const std::uint8_t* data, std::size_t size) : bytes_(data, size) {}

  bool empty() const noexcept { return bytes_.empty(); }

  template <class T>
  T take() noexcept {
    T value{};
    const std::size_t n = bytes_.size() < sizeof(T) ? bytes_.size() : sizeof(T);
    if (n) std::memcpy(&value, bytes_.data(), n);
    bytes_ = bytes_.subspan(n);
    return value;
  }
  std::uint8_t byte() noexcept { return take<std::uint8_t>(); }
  std::uint32_t below(std::uint32_t limit) noexcept {
    return (limit <= 256 ? byte() : take<std::uint16_t>()) % limit;
  }

 private:
  std::span<const std::uint8_t> bytes_;
};

}  // namespace fuzz
