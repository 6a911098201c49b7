#include "device.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

namespace sim {

namespace {

constexpr std::uint64_t kAlignment = std::uint64_t{2} << 20;

[[noreturn]] void refused(const char* what) {
  throw std::system_error(errno, std::generic_category(), what);
}

}  // namespace

/// Two views of one memory.
struct Device::Mapping {
  Mapping(std::uint64_t mapped, int view_access) : bytes(mapped), access(view_access) {
    const int file = memfd_create("simulated-device", MFD_CLOEXEC);
    if (file < 0 || ftruncate(file, static_cast<off_t>(bytes)) != 0) refused("memfd");
    void* whole = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    void* around = mmap(nullptr, bytes + kAlignment, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (whole == MAP_FAILED || around == MAP_FAILED) refused("mmap");
    content = static_cast<std::byte*>(whole);
    reserved = static_cast<std::byte*>(around);
    view = reserved +
           (kAlignment - reinterpret_cast<std::uintptr_t>(reserved) % kAlignment) % kAlignment;
    if (mmap(view, bytes, access, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) refused("mmap");
    close(file);
  }
  ~Mapping() {
    munmap(content, bytes);
    munmap(reserved, bytes + kAlignment);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  const std::uint64_t bytes;
  const int access;
  bool exposed = false;
  std::byte* reserved;
  std::byte* view;
  std::byte* content;
};

thread_local std::unique_ptr<Device::Mapping> Device::spare_;

Device::Device(std::uint64_t bytes, bool guarded)
    : bytes_((bytes + kLineBytes - 1) / kLineBytes * kLineBytes), written_(bytes_ / kPage + 1) {
  const std::uint64_t mapped = (bytes_ + kPage - 1) / kPage * kPage;
  const int access = guarded ? PROT_NONE : PROT_READ | PROT_WRITE;
  mapping_ = std::move(spare_);
  if (!mapping_ || mapping_->bytes != mapped || mapping_->access != access) {
    mapping_ = std::make_unique<Mapping>(mapped, access);
  }
  base_ = mapping_->view;
  content_ = mapping_->content;
}

Device::~Device() {
  // What was writable in both views, or is readable still, is not used again.
  if (mapping_->access != PROT_NONE || mapping_->exposed) return;
  for (std::uint64_t page = 0; page < written_.size(); ++page) {
    if (written_[page]) std::memset(content_ + page * kPage, 0, kPage);
  }
  spare_ = std::move(mapping_);
}

void Device::expose(std::uint64_t offset, std::uint64_t bytes) {
  const std::uint64_t begin = offset / kPage * kPage;
  const std::uint64_t end = (offset + bytes + kPage - 1) / kPage * kPage;
  if (mprotect(base_ + begin, end - begin, PROT_READ) != 0) refused("mprotect");
  mapping_->exposed = true;
}

}  // namespace sim
