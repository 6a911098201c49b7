#include "mapping.hpp"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <utility>

#include "errors.hpp"

namespace beluga {

namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kHugePage = 2U << 20U;
constexpr std::uint64_t kPrefaultStep = 64U << 20U;  // bounds what one signal can make us repeat
constexpr int kMaxRetries = 100;
constexpr int kPopulateWrite = 23;  // MADV_POPULATE_WRITE, Linux 5.14; older headers lack it

[[noreturn]] void fail_map(const PoolFile& file, std::uint64_t size, int error) {
  std::string what = "cannot map " + file.path() + " (" + std::to_string(size) + " bytes)";
  switch (error) {
    case ENOMEM:
      throw Error(ErrorKind::unsupported,
                  what + ": not enough address space: raise 'ulimit -v', or use a smaller pool");
    case EACCES:
    case EPERM:
      throw Error(ErrorKind::pool_permission,
                  what + ": " + std::strerror(error) + ": the system forbids a writable mapping");
    default:
      throw Error(ErrorKind::pool_io, what + ": " + std::strerror(error));
  }
}

/// An open file description of its own for the mapping. A forked child inherits the mapping, which keeps its
/// description open, and with it every lock that is held through it: the parent's locks must not outlive it
/// there. Falls back to the file's own descriptor without /proc, or after a change of user.
class MappedFd {
 public:
  explicit MappedFd(const PoolFile& file)
      : own_(::open(("/proc/self/fd/" + std::to_string(file.fd())).c_str(), O_RDWR | O_CLOEXEC)),
        fd_(own_ >= 0 ? own_ : file.fd()) {}
  ~MappedFd() {
    if (own_ >= 0) ::close(own_);
  }
  MappedFd(const MappedFd&) = delete;
  MappedFd& operator=(const MappedFd&) = delete;
  int get() const noexcept { return fd_; }

 private:
  int own_;
  int fd_;
};

/// Maps the file at an address that is a multiple of `alignment`: huge pages, and the page tables
/// of DAX devices, need address and offset to agree. Reserves more than needed and trims.
std::byte* map_aligned(const PoolFile& file, std::uint64_t size, std::uint64_t alignment) {
  std::uint64_t rounded = 0;
  std::uint64_t span = 0;
  if (__builtin_add_overflow(size, kPage - 1, &rounded) ||
      __builtin_add_overflow(rounded / kPage * kPage, alignment, &span)) {
    fail_map(file, size, ENOMEM);
  }
  rounded = rounded / kPage * kPage;
  void* reserved =
      ::mmap(nullptr, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) fail_map(file, size, errno);
  auto start = reinterpret_cast<std::uintptr_t>(reserved);
  std::uintptr_t aligned = (start + alignment - 1) / alignment * alignment;
  const MappedFd fd(file);
  void* base = ::mmap(reinterpret_cast<void*>(aligned), size, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_FIXED | MAP_NORESERVE, fd.get(), 0);
  if (base == MAP_FAILED) {
    int error = errno;
    ::munmap(reserved, span);
    fail_map(file, size, error);
  }
  if (aligned > start) ::munmap(reserved, aligned - start);
  std::uintptr_t end = aligned + rounded;
  if (start + span > end) ::munmap(reinterpret_cast<void*>(end), start + span - end);
  return static_cast<std::byte*>(base);
}

}  // namespace

std::shared_ptr<Mapping> Mapping::map(PoolFile file) {
  if (file.fd() < 0) {
    throw Error(ErrorKind::forked_handle,
                file.path() + " was opened before this process was forked");
  }
  std::uint64_t size = file.size();
  if (size == 0) {
    throw Error(ErrorKind::invalid_argument,
                file.path() + " is empty: give it a size with 'beluga format --size 64GiB " +
                    file.path() + "'");
  }
  std::byte* base = map_aligned(file, size, std::max(kHugePage, file.alignment()));
  // Owns the mapping from here on, whatever is thrown.
  std::shared_ptr<Mapping> mapping(new Mapping(std::move(file), base));
  mapping->guard_.emplace(base, size, mapping->file_.alignment());
  ::madvise(base, size, MADV_DONTDUMP);
  return mapping;
}

Mapping::Mapping(PoolFile file, std::byte* base)
    : file_(std::move(file)), base_(base), size_(file_.size()) {}

Mapping::~Mapping() {
  // First the guard: once unmapped, the addresses may belong to somebody else.
  guard_.reset();
  ::munmap(base_, size_);
}

void Mapping::advise_huge(std::uint64_t offset, std::uint64_t length) const noexcept {
  if (file_.kind() != DeviceKind::tmpfs || !covers(offset, length)) return;
  std::uint64_t begin = (offset + kPage - 1) / kPage * kPage;
  std::uint64_t end = (offset + length) / kPage * kPage;
  if (begin < end) ::madvise(base_ + begin, end - begin, MADV_HUGEPAGE);
}

void Mapping::throw_fault(int error) const {
  if (file_.current_size() < size_) {
    throw Error(ErrorKind::pool_truncated,
                file_.path() + " was truncated while mapped: format it anew");
  }
  if (error == EFAULT || error == ENOMEM) {
    throw Error(ErrorKind::no_space, file_.path() + ": no memory to prefault it (" +
                                         std::strerror(error) +
                                         "): lower beluga.size, or turn beluga.prefault off");
  }
  throw Error(ErrorKind::pool_io, "cannot prefault " + file_.path() + ": " + std::strerror(error));
}

void Mapping::prefault(std::uint64_t offset, std::uint64_t length) const {
  if (!covers(offset, length)) {
    throw Error(ErrorKind::invalid_argument, file_.path() + ": prefault outside the mapping");
  }
  if (length == 0) return;
  std::uint64_t page = file_.alignment();
  std::uint64_t end = (offset + length - 1) / page * page + page;
  end = std::min(end, (size_ + kPage - 1) / kPage * kPage);
  for (std::uint64_t at = offset / page * page; at < end;) {
    std::uint64_t step = std::min(std::max(kPrefaultStep, page), end - at);
    int error = EINTR;
    for (int attempt = 0; attempt < kMaxRetries && (error == EINTR || error == EAGAIN); ++attempt) {
      error = ::madvise(base_ + at, step, kPopulateWrite) == 0 ? 0 : errno;
    }
    if (error == EINVAL) {
      // An old kernel, or a device that cannot: touch each page. A read suffices on tmpfs and DAX,
      // and unlike a write it cannot collide with a live pool.
      for (std::uint64_t i = at; i < at + step; i += kPage) {
        static_cast<void>(*reinterpret_cast<const volatile unsigned char*>(base_ + i));
      }
      if (faulted()) throw_fault(EFAULT);
    } else if (error != 0) {
      throw_fault(error);
    }
    at += step;
  }
}

}  // namespace beluga
