#include "cache_instructions.hpp"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace beluga {

CacheInstructions CacheInstructions::of_this_cpu() noexcept {
  CacheInstructions have;
#if defined(__x86_64__)
  unsigned a = 0;
  unsigned b = 0;
  unsigned c = 0;
  unsigned d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d)) have.clflush = (d >> 19 & 1) != 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
    have.clflushopt = (b >> 23 & 1) != 0;
    have.clwb = (b >> 24 & 1) != 0;
  }
#endif
  return have;
}

namespace detail {
const CacheInstructions cache_instructions = CacheInstructions::of_this_cpu();
}

const char* why_not_noncoherent() noexcept {
#if defined(__x86_64__)
  return CacheInstructions::of_this_cpu().clflush
             ? ""
             : "this CPU has no instruction that takes a line out of its caches (CLFLUSH)";
#else
  return "it is only written for x86-64 CPUs (CLFLUSH, MFENCE)";
#endif
}

}  // namespace beluga
