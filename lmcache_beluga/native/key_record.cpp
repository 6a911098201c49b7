#include "key_record.hpp"

#include <algorithm>
#include <bit>
#include <limits>

#include "errors.hpp"

namespace beluga {
namespace {

constexpr std::size_t kMaxArena = std::numeric_limits<std::uint32_t>::max();

/// Appends the marker byte and then `value`, big-endian, in `Bytes` bytes.
template <std::size_t Bytes>
void marked(RecordArena& out, unsigned marker, std::uint64_t value) {
  std::byte* at = out.append(1 + Bytes);
  *at++ = static_cast<std::byte>(marker);
  for (std::size_t i = 0; i < Bytes; ++i) {
    at[i] = static_cast<std::byte>(value >> (8 * (Bytes - 1 - i)));
  }
}

std::uint32_t checked_length(std::size_t n) {
  if (n > std::numeric_limits<std::uint32_t>::max()) {
    throw Error(ErrorKind::invalid_argument, "a key field is longer than 4 GiB");
  }
  return static_cast<std::uint32_t>(n);
}

}  // namespace

void RecordArena::grow(std::size_t n) {
  if (n > kMaxArena - size_) {
    throw Error(ErrorKind::invalid_argument,
                "the records of one batch of keys exceed 4 GiB: pass fewer keys per call");
  }
  const std::size_t wanted = std::max({size_ + n, capacity_ * 2, std::size_t{4096}});
  std::unique_ptr<std::byte[]> larger(new std::byte[wanted]);
  if (size_ > 0) std::memcpy(larger.get(), bytes_.get(), size_);
  bytes_ = std::move(larger);
  capacity_ = wanted;
}

namespace msgpack {

void array(RecordArena& out, std::size_t elements) {
  const std::uint32_t n = checked_length(elements);
  if (n < 16) {
    marked<0>(out, 0x90 | n, 0);
  } else if (n < 0x10000) {
    marked<2>(out, 0xdc, n);
  } else {
    marked<4>(out, 0xdd, n);
  }
}

void nil(RecordArena& out) { marked<0>(out, 0xc0, 0); }

void unsigned_integer(RecordArena& out, std::uint64_t value) {
  if (value < 0x80) {
    marked<0>(out, static_cast<unsigned>(value), 0);
  } else if (value < 0x100) {
    marked<1>(out, 0xcc, value);
  } else if (value < 0x10000) {
    marked<2>(out, 0xcd, value);
  } else if (value < 0x1'0000'0000) {
    marked<4>(out, 0xce, value);
  } else {
    marked<8>(out, 0xcf, value);
  }
}

void integer(RecordArena& out, std::int64_t value) {
  const auto bits = static_cast<std::uint64_t>(value);
  if (value >= 0) {
    unsigned_integer(out, bits);
  } else if (value >= -0x20) {
    marked<0>(out, static_cast<unsigned>(bits & 0xff), 0);
  } else if (value >= -0x80) {
    marked<1>(out, 0xd0, bits);
  } else if (value >= -0x8000) {
    marked<2>(out, 0xd1, bits);
  } else if (value >= -0x8000'0000LL) {
    marked<4>(out, 0xd2, bits);
  } else {
    marked<8>(out, 0xd3, bits);
  }
}

void wide_integer(RecordArena& out, std::span<const std::byte> big_endian) {
  const std::uint32_t n = checked_length(big_endian.size());
  switch (n) {
    case 1:
      marked<0>(out, 0xd4, 0);
      break;
    case 2:
      marked<0>(out, 0xd5, 0);
      break;
    case 4:
      marked<0>(out, 0xd6, 0);
      break;
    case 8:
      marked<0>(out, 0xd7, 0);
      break;
    case 16:
      marked<0>(out, 0xd8, 0);
      break;
    default:
      if (n < 0x100) {
        marked<1>(out, 0xc7, n);
      } else if (n < 0x10000) {
        marked<2>(out, 0xc8, n);
      } else {
        marked<4>(out, 0xc9, n);
      }
  }
  *out.append(1) = static_cast<std::byte>(kWideIntExt);
  out.append(big_endian);
}

void real(RecordArena& out, double value) {
  marked<8>(out, 0xcb, std::bit_cast<std::uint64_t>(value));
}

void string(RecordArena& out, std::string_view utf8) {
  const std::uint32_t n = checked_length(utf8.size());
  if (n < 32) {
    marked<0>(out, 0xa0 | n, 0);
  } else if (n < 0x100) {
    marked<1>(out, 0xd9, n);
  } else if (n < 0x10000) {
    marked<2>(out, 0xda, n);
  } else {
    marked<4>(out, 0xdb, n);
  }
  out.append(std::as_bytes(std::span(utf8)));
}

void binary(RecordArena& out, std::span<const std::byte> bytes) {
  const std::uint32_t n = checked_length(bytes.size());
  if (n < 0x100) {
    marked<1>(out, 0xc4, n);
  } else if (n < 0x10000) {
    marked<2>(out, 0xc5, n);
  } else {
    marked<4>(out, 0xc6, n);
  }
  out.append(bytes);
}

}  // namespace msgpack

void KeyBatch::clear() noexcept {
  prints.clear();
  offsets.resize(1);  // never grows: there is always the leading 0
  arena.clear();
}

void KeyBatch::reserve(std::size_t keys) {
  prints.reserve(keys);
  offsets.reserve(keys + 1);
}

void KeyBatch::finish_record() {
  const std::uint32_t begin = offsets.back();
  const auto end = static_cast<std::uint32_t>(arena.size());  // the arena stays below 4 GiB
  if (begin == end) throw Error(ErrorKind::invalid_argument, "a key record is empty");
  // Room first, so that a failed allocation cannot leave the two vectors out of step.
  if (prints.size() == prints.capacity()) reserve(std::max<std::size_t>(16, 2 * prints.size()));
  offsets.push_back(end);
  prints.push_back(fingerprint({arena.data() + begin, end - begin}));
}

void KeyBatch::add(std::span<const std::byte> record) {
  arena.append(record);
  finish_record();
}

}  // namespace beluga
