#include <cstdint>
#include <random>
#include <string_view>
#include <vector>

#include "check.hpp"
#include "crc32c.hpp"

using namespace beluga;

namespace {

std::span<const std::byte> bytes_of(std::string_view text) {
  return std::as_bytes(std::span(text));
}

// RFC 3720 (iSCSI), appendix B.4.
void gives_the_standard_values() {
  CHECK_EQ(crc32c(0, bytes_of("123456789")), 0xE3069283U);
  CHECK_EQ(crc32c(0, {}), 0U);
  std::vector<std::byte> block(32);
  CHECK_EQ(crc32c(0, block), 0x8A9136AAU);
  for (auto& byte : block) byte = std::byte{0xFF};
  CHECK_EQ(crc32c(0, block), 0x62A8AB43U);
  for (std::size_t i = 0; i < block.size(); ++i) block[i] = static_cast<std::byte>(i);
  CHECK_EQ(crc32c(0, block), 0x46DD794EU);
  for (std::size_t i = 0; i < block.size(); ++i) block[i] = static_cast<std::byte>(31 - i);
  CHECK_EQ(crc32c(0, block), 0x113FDB5CU);
}

// Every length and alignment around the eight bytes that the instruction takes at a time.
void instruction_and_table_agree() {
  std::mt19937_64 random(1);
  std::vector<std::byte> bytes(300);
  for (auto& byte : bytes) byte = static_cast<std::byte>(random());
  for (std::size_t begin = 0; begin < 9; ++begin) {
    for (std::size_t n = 0; begin + n <= bytes.size(); ++n) {
      const auto part = std::span(bytes).subspan(begin, n);
      const auto seed = static_cast<std::uint32_t>(random());
      CHECK_EQ(crc32c(seed, part), crc32c_portable(seed, part));
    }
  }
}

void continues_from_its_own_value() {
  const auto all = bytes_of("the quick brown fox jumps over the lazy dog");
  for (std::size_t cut = 0; cut <= all.size(); ++cut) {
    CHECK_EQ(crc32c(crc32c(7, all.first(cut)), all.subspan(cut)), crc32c(7, all));
  }
}

void another_seed_gives_another_value() {
  const auto bytes = bytes_of("a descriptor");
  for (std::uint32_t seed = 1; seed != 0; seed <<= 1) {
    CHECK(crc32c(seed, bytes) != crc32c(0, bytes));
  }
}

void every_flipped_bit_shows() {
  std::vector<std::byte> record(192, std::byte{0x5A});
  const std::uint32_t good = crc32c(3, record);
  for (std::size_t bit = 0; bit < record.size() * 8; ++bit) {
    const std::byte mask = std::byte{1} << static_cast<int>(bit % 8);
    record[bit / 8] ^= mask;
    CHECK(crc32c(3, record) != good);
    record[bit / 8] ^= mask;
  }
}

}  // namespace

int main() {
  gives_the_standard_values();
  instruction_and_table_agree();
  continues_from_its_own_value();
  another_seed_gives_another_value();
  every_flipped_bit_shows();
}
