#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "check.hpp"
#include "fingerprint.hpp"
#include "key_record.hpp"

using namespace beluga;

namespace {

template <typename Write>
std::string encoded(Write write) {
  RecordArena arena;
  write(arena);
  std::string hex;
  for (const std::byte byte : arena.bytes()) {
    constexpr const char* kDigits = "0123456789abcdef";
    hex += kDigits[static_cast<unsigned>(byte) >> 4];
    hex += kDigits[static_cast<unsigned>(byte) & 15];
  }
  return hex;
}

std::string integer(std::int64_t value) {
  return encoded([&](RecordArena& out) { msgpack::integer(out, value); });
}

std::string head(const std::string& hex, std::size_t bytes) { return hex.substr(0, 2 * bytes); }

// The values on both sides of each boundary of the msgpack specification.
void integers_take_the_shortest_form() {
  CHECK_EQ(integer(0), "00");
  CHECK_EQ(integer(127), "7f");
  CHECK_EQ(integer(128), "cc80");
  CHECK_EQ(integer(255), "ccff");
  CHECK_EQ(integer(256), "cd0100");
  CHECK_EQ(integer(65535), "cdffff");
  CHECK_EQ(integer(65536), "ce00010000");
  CHECK_EQ(integer(0xffffffffLL), "ceffffffff");
  CHECK_EQ(integer(0x100000000LL), "cf0000000100000000");
  CHECK_EQ(integer(std::numeric_limits<std::int64_t>::max()), "cf7fffffffffffffff");
  CHECK_EQ(integer(-1), "ff");
  CHECK_EQ(integer(-32), "e0");
  CHECK_EQ(integer(-33), "d0df");
  CHECK_EQ(integer(-128), "d080");
  CHECK_EQ(integer(-129), "d1ff7f");
  CHECK_EQ(integer(-32768), "d18000");
  CHECK_EQ(integer(-32769), "d2ffff7fff");
  CHECK_EQ(integer(-2147483648LL), "d280000000");
  CHECK_EQ(integer(-2147483649LL), "d3ffffffff7fffffff");
  CHECK_EQ(integer(std::numeric_limits<std::int64_t>::min()), "d38000000000000000");
  const auto most = std::numeric_limits<std::uint64_t>::max();
  CHECK_EQ(encoded([&](RecordArena& out) { msgpack::unsigned_integer(out, most); }),
           "cfffffffffffffffff");
}

void wide_integers_are_an_extension() {
  const std::vector<std::byte> nine(9, std::byte{0x11});
  const auto wide = [&](std::size_t n) {
    const std::vector<std::byte> bytes(n, std::byte{0x11});
    return encoded([&](RecordArena& out) { msgpack::wide_integer(out, bytes); });
  };
  CHECK_EQ(wide(9), "c70901111111111111111111");
  CHECK_EQ(head(wide(8), 2), "d701");
  CHECK_EQ(head(wide(16), 2), "d801");
  CHECK_EQ(head(wide(255), 3), "c7ff01");
  CHECK_EQ(head(wide(256), 4), "c8010001");
  CHECK_EQ(head(wide(65536), 6), "c90001000001");
}

void text_bytes_and_the_rest() {
  const auto text = [](std::size_t n) {
    return encoded([&](RecordArena& out) { msgpack::string(out, std::string(n, 'a')); });
  };
  CHECK_EQ(text(0), "a0");
  CHECK_EQ(text(3), "a3616161");
  CHECK_EQ(head(text(31), 1), "bf");
  CHECK_EQ(head(text(32), 2), "d920");
  CHECK_EQ(head(text(255), 2), "d9ff");
  CHECK_EQ(head(text(256), 3), "da0100");
  CHECK_EQ(head(text(65536), 5), "db00010000");
  const auto binary = [](std::size_t n) {
    const std::vector<std::byte> bytes(n);
    return encoded([&](RecordArena& out) { msgpack::binary(out, bytes); });
  };
  CHECK_EQ(binary(0), "c400");
  CHECK_EQ(head(binary(255), 2), "c4ff");
  CHECK_EQ(head(binary(256), 3), "c50100");
  CHECK_EQ(head(binary(65536), 5), "c600010000");
  CHECK_EQ(encoded([](RecordArena& out) { msgpack::nil(out); }), "c0");
  CHECK_EQ(encoded([](RecordArena& out) { msgpack::real(out, 1.5); }), "cb3ff8000000000000");
  const auto array = [](std::size_t n) {
    return encoded([&](RecordArena& out) { msgpack::array(out, n); });
  };
  CHECK_EQ(array(15), "9f");
  CHECK_EQ(array(16), "dc0010");
  CHECK_EQ(array(65536), "dd00010000");
}

void arena_grows_and_keeps_what_it_holds() {
  RecordArena arena;
  std::vector<std::byte> expected;
  for (std::size_t n = 0; n < 3000; ++n) {
    const std::vector<std::byte> bytes(n % 97, static_cast<std::byte>(n));
    arena.append(bytes);
    expected.insert(expected.end(), bytes.begin(), bytes.end());
  }
  CHECK_EQ(arena.size(), expected.size());
  CHECK(std::equal(expected.begin(), expected.end(), arena.bytes().begin()));
  const std::size_t capacity = arena.capacity();
  arena.clear();
  CHECK_EQ(arena.size(), 0U);
  CHECK_EQ(arena.capacity(), capacity);
}

void arena_refuses_more_than_32_bits_of_offset() {
  RecordArena arena;
  CHECK_THROWS_KIND(arena.append(std::size_t{1} << 32), ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(arena.append(std::numeric_limits<std::size_t>::max()),
                    ErrorKind::invalid_argument);
  CHECK_EQ(arena.size(), 0U);
}

void batch_keeps_records_apart() {
  KeyBatch batch;
  CHECK(batch.empty());
  std::vector<std::string> records;
  for (int i = 0; i < 1000; ++i) records.push_back("record " + std::to_string(i * 7919));
  for (int round = 0; round < 2; ++round) {
    batch.clear();
    for (const auto& record : records) batch.add(std::as_bytes(std::span(record)));
    CHECK_EQ(batch.size(), records.size());
    CHECK_EQ(batch.offsets.size(), records.size() + 1);
    for (std::size_t i = 0; i < records.size(); ++i) {
      const auto expected = std::as_bytes(std::span(records[i]));
      const auto got = batch.record(i);
      CHECK(std::equal(got.begin(), got.end(), expected.begin(), expected.end()));
      CHECK(batch.prints[i] == fingerprint(expected));
    }
  }
  CHECK_THROWS_KIND(batch.finish_record(), ErrorKind::invalid_argument);
  CHECK_EQ(batch.size(), records.size());
}

// The on-pool format depends on these values: they may never change.
void fingerprints_are_the_published_hash() {
  const Fingerprint empty = fingerprint({});
  CHECK_EQ(empty.hi, 0x99aa06d3014798d8ULL);
  CHECK_EQ(empty.lo, 0x6001c324468d497fULL);
  CHECK_EQ(checksum64({}), 0x2d06800538d394c2ULL);
  const std::string text = "beluga";
  const auto bytes = std::as_bytes(std::span(text));
  CHECK(fingerprint(bytes) == fingerprint(bytes));
  CHECK(!(fingerprint(bytes) == empty));
}

}  // namespace

int main() {
  integers_take_the_shortest_form();
  wide_integers_are_an_extension();
  text_bytes_and_the_rest();
  arena_grows_and_keeps_what_it_holds();
  arena_refuses_more_than_32_bits_of_offset();
  batch_keeps_records_apart();
  fingerprints_are_the_published_hash();
}
