#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "key_record.hpp"

namespace fuzz {

inline constexpr std::uint32_t kKeys = 24;
/// Of payloads, by key % kSizes.size().
inline constexpr std::array<std::uint32_t, 7> kSizes = {1000, 4096, 5000, 1, 20'000, 4096, 65'536};

/// The keys of the fuzzed pool, and the bytes that belong to each: what a read returns is right or it is not.
class Content {
 public:
  Content() {
    std::mt19937_64 dice(20'260);
    block_.resize((kKeys * 8 + kSizes.back() + 7) / 8);
    for (std::uint64_t& word : block_) word = dice();
    for (std::uint32_t k = 0; k < kKeys; ++k) {
      const std::string text = "fuzz/" + std::to_string(k) + std::string(k * 5, 'k');
      batch_.add(std::as_bytes(std::span(text)));
    }
  }

  const beluga::KeyBatch& keys() const noexcept { return batch_; }
  const beluga::Fingerprint& print(std::uint32_t key) const { return batch_.prints[key]; }
  std::span<const std::byte> record(std::uint32_t key) const { return batch_.record(key); }

  /// kKeys: nobody's.
  std::uint32_t key_of(const beluga::Fingerprint& print) const {
    const auto it = std::find(batch_.prints.begin(), batch_.prints.end(), print);
    return static_cast<std::uint32_t>(it - batch_.prints.begin());
  }

  std::span<const std::byte> payload(std::uint32_t key) const {
    return {reinterpret_cast<const std::byte*>(block_.data() + key), kSizes[key % kSizes.size()]};
  }

  /// Is this exactly what is stored under the key?
  bool right(std::uint32_t key, std::span<const std::byte> bytes) const {
    const auto wanted = payload(key);
    return bytes.size() == wanted.size() && std::memcmp(wanted.data(), bytes.data(), bytes.size()) == 0;
  }

 private:
  std::vector<std::uint64_t> block_;
  beluga::KeyBatch batch_;
};

}  // namespace fuzz
