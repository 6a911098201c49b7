#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <optional>

namespace beluga {

/// Lets other Python threads run while a batch is looked up, if it is so long that they should.
///
/// A lookup neither copies nor waits, and a short one takes microseconds. Who gives the interpreter
/// away gets it back behind a busy thread only when that has had it for 5 ms (sys.getswitchinterval).
class UnlockedIfLong {
 public:
  explicit UnlockedIfLong(std::size_t keys) {
    if (keys > kShort) unlocked_.emplace();
  }

 private:
  static constexpr std::size_t kShort = 256;  // of them, some 0.1 ms; 0.3 ms where lines are flushed

  std::optional<nanobind::gil_scoped_release> unlocked_;
};

}  // namespace beluga
