#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>

namespace fuzz {

/// Says at the end how much was fuzzed.
class Tally {
 public:
  ~Tally() {
    std::fprintf(stderr, "fuzzed: %llu inputs, %llu bytes\n", static_cast<unsigned long long>(inputs_),
                 static_cast<unsigned long long>(bytes_));
  }
  void count(std::size_t size) noexcept {
    ++inputs_;
    bytes_ += size;
  }

 private:
  std::uint64_t inputs_ = 0;
  std::uint64_t bytes_ = 0;
};

inline Tally tally;

}  // namespace fuzz
