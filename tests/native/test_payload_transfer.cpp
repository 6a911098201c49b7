#include <cstring>
#include <random>
#include <vector>

#include "check.hpp"
#include "fingerprint.hpp"
#include "payload_transfer.hpp"

using namespace beluga;

namespace {

constexpr std::size_t kMiB = 1 << 20;

std::vector<std::byte> random_bytes(std::size_t n) {
  std::mt19937_64 random(n);
  std::vector<std::byte> bytes(n + 8);
  for (std::size_t i = 0; i < n; i += 8) {
    const std::uint64_t word = random();
    std::memcpy(bytes.data() + i, &word, 8);
  }
  bytes.resize(n);
  return bytes;
}

/// The definition, written down a second time: it is part of the pool's format.
std::uint64_t expected(std::span<const std::byte> bytes) {
  std::vector<std::uint64_t> sums;
  for (std::size_t at = 0; at < bytes.size(); at += kMiB) {
    sums.push_back(checksum64(bytes.subspan(at, std::min(kMiB, bytes.size() - at))));
  }
  return sums.size() == 1 ? sums[0] : checksum64(std::as_bytes(std::span(sums)));
}

const std::vector<std::size_t> kLengths = {1, 63, 4096, kMiB - 1, kMiB, kMiB + 1, 3 * kMiB, 7 * kMiB + 13};

void every_way_gives_the_same_sum() {
  std::vector<std::vector<std::byte>> payloads;
  for (const std::size_t n : kLengths) payloads.push_back(random_bytes(n));
  for (const int threads : {1, 4}) {
    CopyEngine engine(threads);
    for (const CopyDirection direction : {CopyDirection::to_pool, CopyDirection::from_pool}) {
      for (const std::size_t shift : {0u, 1u, 33u}) {
        PayloadTransfer sums(true);
        PayloadTransfer only(true);
        PayloadTransfer plain(false);
        std::vector<std::vector<std::byte>> copies;
        std::vector<std::vector<std::byte>> plain_copies;
        for (const auto& payload : payloads) {
          copies.emplace_back(payload.size() + 64);
          sums.add(copies.back().data() + shift, payload);
          only.add(nullptr, payload);
          plain_copies.emplace_back(payload.size() + 64);
          plain.add(plain_copies.back().data() + shift, payload);
        }
        sums.run(engine, direction);
        only.run(engine, direction);
        plain.run(engine, direction);
        for (std::size_t i = 0; i < payloads.size(); ++i) {
          CHECK(std::memcmp(copies[i].data() + shift, payloads[i].data(), payloads[i].size()) == 0);
          CHECK(std::memcmp(plain_copies[i].data() + shift, payloads[i].data(), payloads[i].size()) == 0);
          CHECK_EQ(sums.checksum(i), expected(payloads[i]));
          CHECK_EQ(only.checksum(i), expected(payloads[i]));
          CHECK_EQ(plain.checksum(i), 0u);
          CHECK_EQ(payload_checksum(payloads[i]), expected(payloads[i]));
          CHECK(expected(payloads[i]) != 0);
        }
      }
    }
  }
}

void every_bit_counts() {
  for (const std::size_t n : {std::size_t{1}, std::size_t{4097}, 2 * kMiB + 5}) {
    std::vector<std::byte> bytes = random_bytes(n);
    const std::uint64_t sum = payload_checksum(bytes);
    std::mt19937_64 random(7);
    for (int i = 0; i < 100; ++i) {
      const std::size_t at = i == 0 ? 0 : i == 1 ? n - 1 : random() % n;
      const auto bit = static_cast<std::byte>(1 << random() % 8);
      bytes[at] ^= bit;
      CHECK(payload_checksum(bytes) != sum);
      bytes[at] ^= bit;
    }
    CHECK_EQ(payload_checksum(bytes), sum);
  }
}

/// Two MiBs that have changed places are not the same payload.
void order_counts() {
  const std::vector<std::byte> bytes = random_bytes(2 * kMiB);
  std::vector<std::byte> swapped(bytes.begin() + kMiB, bytes.end());
  swapped.insert(swapped.end(), bytes.begin(), bytes.begin() + kMiB);
  CHECK(payload_checksum(bytes) != payload_checksum(swapped));
}

}  // namespace

int main() {
  every_way_gives_the_same_sum();
  every_bit_counts();
  order_counts();
}
