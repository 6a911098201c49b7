#pragma once

#include <cstddef>
#include <span>

namespace beluga {

/// One way of reading or writing memory that a probe can time.
struct ProbeOperation {
  const char* name;
  /// Does it to `n` bytes, whole lines, with the fences that make it complete.
  void (*run)(std::byte* at, std::size_t n) noexcept;
  /// Puts those lines into the state that `run` is to meet: out of the caches, or, where `run` begins with a flush,
  /// in them. Not timed.
  void (*prepare)(std::byte* at, std::size_t n) noexcept;
  bool writes;
};

/// Those that this CPU can run: load, store and ntstore; store followed by each instruction that writes lines back;
/// load after each that invalidates them. Elsewhere than on x86-64 load and store alone, through the caches.
///
/// ntstore is the kernel that copies payload into the pool, from a source that stays in the cache.
std::span<const ProbeOperation> probe_operations() noexcept;

/// The operation of that name; null if there is none here.
const ProbeOperation* probe_operation(const char* name) noexcept;

/// Takes whole lines out of this host's caches, and waits for it.
void flush_lines(std::byte* at, std::size_t n) noexcept;

}  // namespace beluga
