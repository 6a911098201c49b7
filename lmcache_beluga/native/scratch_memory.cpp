#include "scratch_memory.hpp"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <exception>
#include <utility>

#include "errors.hpp"
#include "layout.hpp"
#include "pinned_threads.hpp"
#include "pool_file.hpp"
#include "probe_operations.hpp"

namespace beluga {
namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint64_t kHugePage = 2U << 20U;

std::uint64_t checked_size(std::uint64_t bytes) {
  if (bytes == 0 || bytes % kPageBytes != 0 || bytes > std::uint64_t{1} << 40U) {
    throw Error(ErrorKind::invalid_argument,
                "the memory to measure in has a multiple of 4 KiB, at most 1 TiB, not " + std::to_string(bytes));
  }
  return bytes;
}

/// Runs `touch`, which makes pages, on `cpu`: the kernel takes them from its node.
template <class Touch>
void touch_on(int cpu, Touch touch) {
  std::exception_ptr trouble;
  run_pinned(std::array{cpu}, [&](std::size_t) {
    try {
      touch();
    } catch (...) {
      trouble = std::current_exception();
    }
  });
  if (trouble) std::rethrow_exception(trouble);
}

bool is_superblock(const Mapping& device) {
  flush_lines(device.base(), kLine);  // another host may have formatted it
  const auto magic = *reinterpret_cast<const volatile std::uint64_t*>(device.base());
  return magic == kMagic || magic == kMagicPartial;
}

}  // namespace

std::shared_ptr<ScratchMemory> ScratchMemory::in_dram(std::uint64_t bytes, int cpu) {
  checked_size(bytes);
  // Aligned, so that huge pages fit: reserves more than needed and trims.
  const std::uint64_t span = bytes + kHugePage;
  void* reserved = ::mmap(nullptr, span, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) {
    throw Error(ErrorKind::no_space, "no memory to compare with: " + std::to_string(bytes) + " bytes");
  }
  auto* start = static_cast<std::byte*>(reserved);
  const std::uint64_t before = -reinterpret_cast<std::uintptr_t>(start) % kHugePage;
  if (before > 0) ::munmap(start, before);
  ::munmap(start + before + bytes, kHugePage - before);
  std::shared_ptr<ScratchMemory> memory(new ScratchMemory(start + before, bytes, nullptr));
  ::madvise(memory->data_, bytes, MADV_HUGEPAGE);
  touch_on(cpu, [&] {
    for (std::uint64_t at = 0; at < bytes; at += kPageBytes) memory->data_[at] = std::byte{1};
  });
  return memory;
}

std::shared_ptr<ScratchMemory> ScratchMemory::in_file(const std::string& path, std::uint64_t bytes, int cpu) {
  auto file = PoolFile::create(path, checked_size(bytes));
  if (!file) throw Error(ErrorKind::invalid_argument, path + " exists: it is not touched");
  try {
    const auto mapping = Mapping::map(std::move(*file));
    touch_on(cpu, [&] {
      mapping->file().reserve(0, mapping->size());
      mapping->prefault(0, mapping->size());
    });
    return std::shared_ptr<ScratchMemory>(new ScratchMemory(mapping->base(), mapping->size(), mapping));
  } catch (...) {
    ::unlink(path.c_str());
    throw;
  }
}

std::shared_ptr<ScratchMemory> ScratchMemory::on_device(const std::string& path, std::uint64_t bytes, int cpu) {
  checked_size(bytes);
  PoolFile file = PoolFile::open_existing(path);
  if (file.kind() != DeviceKind::devdax) {
    throw Error(ErrorKind::not_a_pool, path + " is no DAX device, and its contents are somebody's: it was not touched");
  }
  const std::uint64_t step = std::max(kHugePage, file.alignment());
  const auto mapping = Mapping::map(std::move(file));
  if (is_superblock(*mapping)) {
    throw Error(ErrorKind::pool_busy,
                path + " is a pool, or a part of one: name all devices of the pool, in order, to measure in it");
  }
  const std::uint64_t from = (mapping->size() / 2 + step - 1) / step * step;
  const std::uint64_t size = std::min(bytes, mapping->size() - std::min(from, mapping->size())) / kPageBytes * kPageBytes;
  if (size == 0) throw Error(ErrorKind::invalid_argument, path + " is too small to measure in");
  touch_on(cpu, [&] { mapping->prefault(from, size); });
  return std::shared_ptr<ScratchMemory>(new ScratchMemory(mapping->base() + from, size, mapping));
}

ScratchMemory::~ScratchMemory() {
  if (!mapping_) ::munmap(data_, size_);
}

std::vector<int> page_nodes(const std::byte* data, std::uint64_t size, std::uint32_t samples) {
  const std::uint64_t pages = std::min<std::uint64_t>(std::max(1U, samples), (size + kPageBytes - 1) / kPageBytes);
  std::vector<const void*> at(pages);
  for (std::uint64_t i = 0; i < pages; ++i) at[i] = data + size / pages * i;
  std::vector<int> nodes(pages, -1);
#if defined(SYS_move_pages)
  if (syscall(SYS_move_pages, 0, pages, at.data(), nullptr, nodes.data(), 0) != 0) return {};
  return nodes;
#else
  return {};
#endif
}

}  // namespace beluga
