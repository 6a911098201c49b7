#include "object_salt.hpp"

#include <cstdint>

#include "key_record.hpp"

namespace beluga {

namespace {

/// Reads msgpack values one after the other; a record may hold anything.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : bytes_(bytes) {}

  bool is(std::uint32_t byte) noexcept { return take(1) && last(0) == byte; }

  bool skip_integer() noexcept {
    if (!take(1)) return false;
    const std::uint32_t tag = last(0);
    if (tag < 0x80 || tag >= 0xe0) return true;
    if (tag >= 0xcc && tag <= 0xcf) return take(std::size_t{1} << (tag - 0xcc));
    if (tag >= 0xd0 && tag <= 0xd3) return take(std::size_t{1} << (tag - 0xd0));
    return false;
  }

  std::optional<std::string_view> string() noexcept {
    if (!take(1)) return std::nullopt;
    const std::uint32_t tag = last(0);
    std::size_t length = tag & 0x1f;
    if (tag >= 0xd9 && tag <= 0xdb) {
      const std::size_t digits = std::size_t{1} << (tag - 0xd9);
      if (!take(digits)) return std::nullopt;
      length = 0;
      for (std::size_t i = 0; i < digits; ++i) length = length << 8 | last(i);
    } else if (tag < 0xa0 || tag > 0xbf) {
      return std::nullopt;
    }
    if (!take(length)) return std::nullopt;
    return std::string_view(reinterpret_cast<const char*>(taken_.data()), length);
  }

 private:
  bool take(std::size_t n) noexcept {
    if (n > bytes_.size()) return false;
    taken_ = bytes_.first(n);
    bytes_ = bytes_.subspan(n);
    return true;
  }
  std::uint32_t last(std::size_t i) const noexcept { return std::to_integer<std::uint32_t>(taken_[i]); }

  std::span<const std::byte> bytes_;
  std::span<const std::byte> taken_;
};

constexpr std::uint32_t kArrayOf7 = 0x97;

}  // namespace

std::optional<std::string_view> object_salt(std::span<const std::byte> record) noexcept {
  Reader reader(record);
  if (!reader.is(kArrayOf7) || !reader.is(kRecordForm)) return std::nullopt;
  if (!reader.is(static_cast<std::uint32_t>(KeyKind::object))) return std::nullopt;
  if (!reader.string() || !reader.skip_integer() || !reader.skip_integer()) return std::nullopt;
  return reader.string();
}

}  // namespace beluga
