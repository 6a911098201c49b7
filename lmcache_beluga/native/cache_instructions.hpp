#pragma once

#include <atomic>
#include <cstdint>

#include "noncoherent.hpp"

namespace beluga {

/// Which instructions this CPU has for taking lines out of its caches.
struct CacheInstructions {
  bool clflush = false;     // write back and invalidate, ordered: every x86-64
  bool clflushopt = false;  // the same, unordered between lines: many at once
  bool clwb = false;        // write back, keep

  static CacheInstructions of_this_cpu() noexcept;
};

/// Empty if this machine can take part in a noncoherent pool, else why it cannot.
const char* why_not_noncoherent() noexcept;

namespace detail {
extern const CacheInstructions cache_instructions;
}

#if defined(__x86_64__)

/// The x86-64 CPU below Noncoherent: CLWB, CLFLUSHOPT and CLFLUSH by run-time dispatch, SFENCE, MFENCE.
struct CacheMachine : NativeMachine, NativeMemory {
  static void write_back(const void* line) noexcept {
    if (detail::cache_instructions.clwb) {
      asm volatile("clwb %0" : : "m"(*static_cast<const char*>(line)) : "memory");
    } else {
      flush(line);
    }
  }
  static void flush(const void* line) noexcept {
    if (detail::cache_instructions.clflushopt) {
      asm volatile("clflushopt %0" : : "m"(*static_cast<const char*>(line)) : "memory");
    } else {
      asm volatile("clflush %0" : : "m"(*static_cast<const char*>(line)) : "memory");
    }
  }
  static void load_back(const void* line) noexcept {
    static_cast<void>(__atomic_load_n(static_cast<const char*>(line), __ATOMIC_RELAXED));
  }
  static void store_fence() noexcept { asm volatile("sfence" : : : "memory"); }
  static void full_fence() noexcept { asm volatile("mfence" : : : "memory"); }
};

#else

/// Compiles elsewhere; attaching is refused there (why_not_noncoherent).
struct CacheMachine : NativeMachine, NativeMemory {
  static void write_back(const void*) noexcept {}
  static void flush(const void*) noexcept {}
  static void load_back(const void*) noexcept {}
  static void store_fence() noexcept {}
  static void full_fence() noexcept { std::atomic_thread_fence(std::memory_order_seq_cst); }
};

#endif

static_assert(VisibilityPolicy<Noncoherent<CacheMachine>>);

}  // namespace beluga
