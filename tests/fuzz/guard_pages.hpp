#pragma once

#include <sys/mman.h>

#include <cstdint>

#include "mapping.hpp"

namespace fuzz {

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

/// Forbidden memory right before and behind a mapping, so that no access outside it meets other memory by chance.
/// (AddressSanitizer knows the heap and the stack, not what mmap gives.)
class GuardPages {
 public:
  explicit GuardPages(const beluga::Mapping& mapping) {
    const std::uint64_t size = (mapping.size() + 4095) / 4096 * 4096;
    before_ = forbid([&](std::uint64_t bytes) { return mapping.base() - bytes; });
    behind_ = forbid([&](std::uint64_t) { return mapping.base() + size; });
  }
  ~GuardPages() {
    if (before_.at) ::munmap(before_.at, before_.bytes);
    if (behind_.at) ::munmap(behind_.at, behind_.bytes);
  }
  /// False when another mapping follows at once somewhere.
  bool whole() const noexcept { return before_.at && behind_.at; }
  GuardPages(const GuardPages&) = delete;
  GuardPages& operator=(const GuardPages&) = delete;

 private:
  struct Forbidden {
    void* at;
    std::uint64_t bytes;
  };

  /// As much as is free there; where another mapping follows at once, that one stays what it is.
  template <class At>
  static Forbidden forbid(At&& at) {
    for (std::uint64_t bytes = 1 << 20; bytes >= 4096; bytes /= 2) {
      void* got = ::mmap(at(bytes), bytes, PROT_NONE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
      if (got == at(bytes)) return {got, bytes};
      if (got != MAP_FAILED) ::munmap(got, bytes);
    }
    return {nullptr, 0};
  }

  Forbidden before_;
  Forbidden behind_;
};

}  // namespace fuzz
