#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>

#include "bus_guard.hpp"
#include "pool_file.hpp"

namespace beluga {

/// One device of a pool, mapped whole, shared and writable, at a 2 MiB-aligned address (1 GiB where
/// the pages are that large). Held through std::shared_ptr: the pool and every view keep it alive.
///
/// Mapping touches nothing, so a sparse file of terabytes maps in microseconds and gains no block.
/// Pages are left out of core dumps. A forked child keeps the mapping, so that a stray view there
/// reads on instead of crashing; that its handle is dead is for the pool to say.
class Mapping {
 public:
  /// Takes the file over. Throws `invalid_argument` for an empty file, `unsupported` when the
  /// address space does not suffice, `pool_permission`, `pool_io`.
  static std::shared_ptr<Mapping> map(PoolFile file);

  ~Mapping();
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  std::byte* base() const noexcept { return base_; }
  /// Bytes: file().size() when it was mapped.
  std::uint64_t size() const noexcept { return size_; }
  const PoolFile& file() const noexcept { return file_; }

  /// Is [offset, offset + length) inside? Any values are fine, also such that overflow.
  bool covers(std::uint64_t offset, std::uint64_t length) const noexcept {
    return offset <= size_ && length <= size_ - offset;
  }

  /// Some access here met a page that is gone and read zeros (bus_guard.hpp): trust nothing that
  /// was read or written since the last check, and close the pool.
  bool faulted() const noexcept { return guard_->faulted(); }

  /// Asks for transparent huge pages on tmpfs, where the mount allows it; never fails.
  void advise_huge(std::uint64_t offset, std::uint64_t length) const noexcept;

  /// Allocates and maps every page of the range now, contents kept. Throws `invalid_argument`,
  /// `no_space`, `pool_truncated`, `pool_io`. Slow in proportion to length (tmpfs: ~1 s for 4 GiB).
  void prefault(std::uint64_t offset, std::uint64_t length) const;

 private:
  Mapping(PoolFile file, std::byte* base);
  [[noreturn]] void throw_fault(int error) const;

  PoolFile file_;
  std::byte* base_;
  std::uint64_t size_;
  std::optional<BusGuard> guard_;
};

}  // namespace beluga
