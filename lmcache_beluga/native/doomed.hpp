#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

namespace beluga {

/// Slots that this process is to free as soon as it can: chunks that were removed while leased, when their leases
/// have ended; abandoned slots whose lock could not be had.
class Doomed {
 public:
  struct Entry {
    std::uint32_t slot;
    std::uint64_t word;  // CLOSING or WRITING by this process; anything else: done with
  };

  void add(std::uint32_t slot, std::uint64_t word) {
    std::lock_guard guard(mutex_);
    entries_.push_back({slot, word});
  }

  /// Tries each of them: `free` returns true when a slot is done with.
  template <class Free>
  void retry(Free&& free) {
    std::vector<Entry> waiting;
    {
      std::lock_guard guard(mutex_);
      waiting.swap(entries_);
    }
    std::erase_if(waiting, free);
    if (waiting.empty()) return;
    std::lock_guard guard(mutex_);
    entries_.insert(entries_.end(), waiting.begin(), waiting.end());
  }

 private:
  std::mutex mutex_;
  std::vector<Entry> entries_;
};

}  // namespace beluga
