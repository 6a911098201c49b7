#pragma once

#include <cstddef>
#include <span>

namespace beluga {

/// One way of copying `n` bytes between memory that does not overlap, in the calling thread.
using CopyKernel = void (*)(void* dst, const void* src, std::size_t n) noexcept;

/// A kernel with the instruction set it needs, for the tests and the benchmark.
struct NamedCopyKernel {
  const char* name;
  CopyKernel run;
};

/// Every streaming kernel that this CPU can run, the fastest first; "portable" (memcpy) is always
/// the last.
[[nodiscard]] std::span<const NamedCopyKernel> streaming_kernels() noexcept;

/// The kernel for copies into the pool: non-temporal stores where the CPU has them, ended by
/// SFENCE.
[[nodiscard]] CopyKernel to_pool_kernel() noexcept;

/// The kernel for copies out of the pool into ordinary memory: REP MOVSB where the CPU announces it
/// as fast (it measured ahead of memcpy and of non-temporal stores, whether dst was cached or not),
/// else memcpy.
[[nodiscard]] CopyKernel from_pool_kernel() noexcept;

}  // namespace beluga
