#include "copy_kernels.hpp"

#include <array>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace beluga {
namespace {

void copy_portable(void* dst, const void* src, std::size_t n) noexcept {
  if (n > 0) std::memcpy(dst, src, n);
}

#if defined(__x86_64__)

constexpr std::size_t kLine = 64;

/// Bytes from `p` to the next line boundary.
std::size_t to_line(const void* p) { return -reinterpret_cast<std::uintptr_t>(p) % kLine; }

/// The shape of every streaming copy: an ordinary head up to a line boundary of dst, whole lines by
/// `Lines`, an ordinary tail, and the fence that orders the non-temporal stores before what the
/// caller stores next. Returns the bytes left for the tail.
template <auto Lines>
void stream(void* dst, const void* src, std::size_t n) noexcept {
  auto* to = static_cast<std::byte*>(dst);
  const auto* from = static_cast<const std::byte*>(src);
  const std::size_t head = to_line(to) < n ? to_line(to) : n;
  copy_portable(to, from, head);
  const std::size_t body = (n - head) / kLine * kLine;
  Lines(to + head, from + head, body);
  copy_portable(to + head + body, from + head + body, n - head - body);
  _mm_sfence();
}

// Each of these copies `n` bytes, a multiple of 64, to a 64-byte aligned `to`. Loads run one group
// ahead of the stores: four lines where the registers allow it, since a store of a whole line needs
// no read of its old contents.

__attribute__((target("avx512f"))) void lines_avx512(std::byte* to, const std::byte* from,
                                                     std::size_t n) noexcept {
  for (; n >= 4 * kLine; n -= 4 * kLine, to += 4 * kLine, from += 4 * kLine) {
    const __m512i a = _mm512_loadu_si512(from);
    const __m512i b = _mm512_loadu_si512(from + kLine);
    const __m512i c = _mm512_loadu_si512(from + 2 * kLine);
    const __m512i d = _mm512_loadu_si512(from + 3 * kLine);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), a);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + kLine), b);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 2 * kLine), c);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 3 * kLine), d);
  }
  for (; n > 0; n -= kLine, to += kLine, from += kLine) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
  }
}

__attribute__((target("avx2"))) void lines_avx2(std::byte* to, const std::byte* from,
                                                std::size_t n) noexcept {
  for (; n > 0; n -= kLine, to += kLine, from += kLine) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    const __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), a);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 32), b);
  }
}

void lines_sse2(std::byte* to, const std::byte* from, std::size_t n) noexcept {
  for (; n > 0; n -= kLine, to += kLine, from += kLine) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16));
    const __m128i c = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 32));
    const __m128i d = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 48));
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), a);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 16), b);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 32), c);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 48), d);
  }
}

/// REP MOVSB, for CPUs that announce it as their fast copy (ERMS). It wants an aligned destination.
void copy_rep_movsb(void* dst, const void* src, std::size_t n) noexcept {
  constexpr std::size_t kWorthwhile = 4096;  // below it, the microcode's start-up costs more
  if (n < kWorthwhile) {
    copy_portable(dst, src, n);
    return;
  }
  const std::size_t head = to_line(dst);
  copy_portable(dst, src, head);
  void* to = static_cast<std::byte*>(dst) + head;
  const void* from = static_cast<const std::byte*>(src) + head;
  std::size_t left = n - head;
  asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(left) : : "memory");
}

bool has_fast_rep_movsb() {
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  constexpr unsigned kErms = 1U << 9;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (ebx & kErms) != 0;
}

#endif  // __x86_64__

struct Kernels {
  Kernels() noexcept {
#if defined(__x86_64__)
    // AMD's CPUs (an EPYC with AVX-512) take 8 to 13 % longer in its stores.
    const bool narrow_first = __builtin_cpu_is("amd");
    const bool avx2 = __builtin_cpu_supports("avx2");
    if (avx2 && narrow_first) add("avx2", stream<lines_avx2>);
    if (__builtin_cpu_supports("avx512f")) add("avx512", stream<lines_avx512>);
    if (avx2 && !narrow_first) add("avx2", stream<lines_avx2>);
    add("sse2", stream<lines_sse2>);
    if (has_fast_rep_movsb()) from_pool = copy_rep_movsb;
#endif
    add("portable", copy_portable);
  }

  void add(const char* name, CopyKernel run) noexcept { streaming[count++] = {name, run}; }

  std::array<NamedCopyKernel, 4> streaming{};
  std::size_t count = 0;
  CopyKernel from_pool = copy_portable;
};

const Kernels& kernels() noexcept {
  static const Kernels found;
  return found;
}

}  // namespace

std::span<const NamedCopyKernel> streaming_kernels() noexcept {
  return {kernels().streaming.data(), kernels().count};
}

CopyKernel to_pool_kernel() noexcept { return kernels().streaming[0].run; }

CopyKernel from_pool_kernel() noexcept { return kernels().from_pool; }

}  // namespace beluga
