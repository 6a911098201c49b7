#include "probe_operations.hpp"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "cache_instructions.hpp"
#include "copy_kernels.hpp"

namespace beluga {
namespace {

using Lines = void (*)(std::byte*, std::size_t) noexcept;

constexpr std::size_t kLineBytes = 64;

void load(std::byte* at, std::size_t n) noexcept {
  std::uint64_t sum = 0;
  const auto* words = reinterpret_cast<const std::uint64_t*>(at);
  for (std::size_t i = 0; i < n / 8; ++i) sum ^= words[i];
  asm volatile("" : : "r"(sum) : "memory");
}

void store(std::byte* at, std::size_t n) noexcept {
  for (std::byte* end = at + n; at < end; at += kLineBytes) {
    std::array<std::uint64_t, kLineBytes / 8> line;
    line.fill(reinterpret_cast<std::uintptr_t>(at));
    std::memcpy(at, line.data(), kLineBytes);
    asm volatile("" : : : "memory");  // or the loop becomes a call of memset, which streams large blocks
  }
}

#if defined(__x86_64__)

void ntstore(std::byte* at, std::size_t n) noexcept {
  // Small enough for a second-level cache, and large enough that the fence at its end does not show.
  alignas(kLineBytes) static const auto source = [] {
    std::array<std::byte, 256 << 10> bytes;
    // No zeros: some CPUs write those faster.
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(1 + i % 251);
    return bytes;
  }();
  while (n > 0) {
    const std::size_t step = std::min(n, source.size());
    to_pool_kernel()(at, source.data(), step);
    at += step;
    n -= step;
  }
}

template <auto Line>
void each_line(const std::byte* at, std::size_t n) noexcept {
  for (const std::byte* end = at + n; at < end; at += kLineBytes) Line(at);
}

void clwb(const void* line) noexcept { asm volatile("clwb %0" : : "m"(*static_cast<const char*>(line)) : "memory"); }
void clflushopt(const void* line) noexcept {
  asm volatile("clflushopt %0" : : "m"(*static_cast<const char*>(line)) : "memory");
}
void clflush(const void* line) noexcept {
  asm volatile("clflush %0" : : "m"(*static_cast<const char*>(line)) : "memory");
}

template <auto Line>
void store_then(std::byte* at, std::size_t n) noexcept {
  store(at, n);
  each_line<Line>(at, n);
  CacheMachine::store_fence();
}

template <auto Line>
void load_after(std::byte* at, std::size_t n) noexcept {
  each_line<Line>(at, n);
  CacheMachine::full_fence();
  load(at, n);
}

#endif

struct Operations {
  Operations() noexcept {
    const Lines cold = flush_lines;
    add({"load", load, cold, false});
    add({"store", store, cold, true});
#if defined(__x86_64__)
    const CacheInstructions have = CacheInstructions::of_this_cpu();
    add({"ntstore", ntstore, cold, true});
    if (have.clwb) add({"store+clwb", store_then<clwb>, cold, true});
    if (have.clflushopt) add({"store+clflushopt", store_then<clflushopt>, cold, true});
    if (have.clflush) add({"store+clflush", store_then<clflush>, cold, true});
    if (have.clflushopt) add({"clflushopt+load", load_after<clflushopt>, load, false});
    if (have.clflush) add({"clflush+load", load_after<clflush>, load, false});
#endif
  }

  void add(const ProbeOperation& one) noexcept { all[count++] = one; }

  std::array<ProbeOperation, 8> all{};
  std::size_t count = 0;
};

}  // namespace

void flush_lines(std::byte* at, std::size_t n) noexcept {
#if defined(__x86_64__)
  each_line<CacheMachine::flush>(at, n);
  CacheMachine::full_fence();
#else
  static_cast<void>(at);
  static_cast<void>(n);
#endif
}

std::span<const ProbeOperation> probe_operations() noexcept {
  static const Operations found;
  return {found.all.data(), found.count};
}

const ProbeOperation* probe_operation(const char* name) noexcept {
  for (const ProbeOperation& one : probe_operations()) {
    if (std::strcmp(one.name, name) == 0) return &one;
  }
  return nullptr;
}

}  // namespace beluga
