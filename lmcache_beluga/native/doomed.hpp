#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

namespace beluga {

struct DoomedSlot {
  std::uint32_t slot;
  std::uint64_t word;  // CLOSING or WRITING by this process; anything else: done with
};

/// Slots that this process is to free as soon as it can: chunks that were removed while leased, when their leases
/// have ended; abandoned slots whose lock could not be had.
template <class Mutex>
class Doomed {
 public:
  void add(std::uint32_t slot, std::uint64_t word) {
    const std::lock_guard guard(mutex_);
    entries_.push_back({slot, word});
  }

  /// Tries each of them: `free` returns true when a slot is done with.
  template <class Free>
  void retry(Free&& free) {
    std::vector<DoomedSlot> waiting;
    {
      const std::lock_guard guard(mutex_);
      waiting.swap(entries_);
    }
    std::erase_if(waiting, free);
    if (waiting.empty()) return;
    const std::lock_guard guard(mutex_);
    entries_.insert(entries_.end(), waiting.begin(), waiting.end());
  }

 private:
  Mutex mutex_;
  std::vector<DoomedSlot> entries_;
};

}  // namespace beluga
