#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "mapping.hpp"

namespace beluga {

/// Memory to measure in that holds nothing of anybody's: private DRAM, a new file, or a part of a DAX device that is
/// no pool. All of its pages are there.
class ScratchMemory {
 public:
  /// Anonymous memory, in huge pages where the system gives them. Its pages come from the NUMA node of `cpu`. Throws
  /// `no_space`, `invalid_argument`.
  static std::shared_ptr<ScratchMemory> in_dram(std::uint64_t bytes, int cpu);

  /// A file that is made for it with mode 0600, and has storage for all of it; whoever asked for it removes it. Throws
  /// `invalid_argument` if something of that name exists, `no_space`, and what PoolFile::create() throws.
  static std::shared_ptr<ScratchMemory> in_file(const std::string& path, std::uint64_t bytes, int cpu);

  /// The second half of a DAX device, at most `bytes` of it: what a pool would have at its start is not touched. The
  /// rest is overwritten. Throws `not_a_pool` for a file, `pool_busy` if the device is a pool, a part of one, or one
  /// that is being formatted: also a damaged one.
  static std::shared_ptr<ScratchMemory> on_device(const std::string& path, std::uint64_t bytes, int cpu);

  ~ScratchMemory();
  ScratchMemory(const ScratchMemory&) = delete;
  ScratchMemory& operator=(const ScratchMemory&) = delete;

  std::byte* data() const noexcept { return data_; }
  std::uint64_t size() const noexcept { return size_; }
  /// See Mapping::faulted(): what was measured since is not this memory.
  bool faulted() const noexcept { return mapping_ && mapping_->faulted(); }
  /// "dram", or what stands behind the mapping.
  const char* kind() const noexcept { return mapping_ ? to_string(mapping_->file().kind()) : "dram"; }

 private:
  ScratchMemory(std::byte* data, std::uint64_t size, std::shared_ptr<Mapping> mapping)
      : data_(data), size_(size), mapping_(std::move(mapping)) {}

  std::byte* data_;
  std::uint64_t size_;
  std::shared_ptr<Mapping> mapping_;  // null for DRAM, which is unmapped here
};

/// The NUMA nodes of at most `samples` pages, evenly spread; negative where there is no page. Empty if the system does
/// not tell (a container may forbid it).
std::vector<int> page_nodes(const std::byte* data, std::uint64_t size, std::uint32_t samples);

}  // namespace beluga
