#pragma once

#include <atomic>
#include <cstdint>

namespace beluga {

/// Turns a SIGBUS inside a mapping into zeros and a flag.
///
/// Why: the kernel answers a load or store with SIGBUS when the page behind it is gone: somebody
/// truncated the file, tmpfs had no room for a hole, or a CXL line is poisoned. The pool is a
/// cache; losing it must not take the inference engine down. So the handler maps private zero pages
/// over the faulting page and returns, and the interrupted access goes on. Zeros fail the
/// validation of every record, so lookups become misses.
///
/// What it does not do: a payload that was being copied now ends in zeros, and a store into the
/// replaced page is seen by nobody else. Therefore *check faulted() after the accesses and before
/// telling anybody of success*: after copying a payload out, when a view is asked whether it is
/// still valid, and before a store is called committed. The flag is set by the faulting thread
/// itself before the access completes, and never goes back.
///
/// The handler is installed at the first range and put back on top at a later one if somebody has
/// replaced it meanwhile. A SIGBUS outside all ranges, or one sent by kill(2), goes to the handler
/// found at installation; the default action kills the process as it would have without us. System
/// calls that meet such a page return EFAULT and raise no signal. The handler uses nothing but
/// atomics in static storage, mmap(2) and sigaction(2), so it is async-signal-safe, and stays valid
/// in a forked child.
class BusGuard {
 public:
  /// Guards [base, base + length). `page` is the granularity in which the mapping can be replaced:
  /// the huge page size on hugetlbfs, the alignment of a DAX device, else 4096; base must be a
  /// multiple. Throws `invalid_argument`, `unsupported` when 256 ranges are guarded.
  BusGuard(void* base, std::uint64_t length, std::uint64_t page);
  ~BusGuard();
  BusGuard(const BusGuard&) = delete;
  BusGuard& operator=(const BusGuard&) = delete;

  /// True once any access in the range has faulted.
  bool faulted() const noexcept { return faulted_->load(std::memory_order_acquire); }

 private:
  unsigned index_;
  const std::atomic<bool>* faulted_;
};

}  // namespace beluga
