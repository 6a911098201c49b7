#include "control_block.hpp"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <string>

#include "errors.hpp"
#include "fingerprint.hpp"

namespace beluga {
namespace {

constexpr std::uint64_t kControlMagic = 0x31304c54434c4542;  // "BELCTL01"
constexpr std::uint32_t kControlVersion = 3;
constexpr std::uint64_t kProcessesAt = 4096;

constexpr std::uint64_t round_up(std::uint64_t n, std::uint64_t to) {
  return (n + to - 1) / to * to;
}

/// A short text file under /proc or /etc, up to `limit` bytes; empty when it cannot be read.
std::string read_text(const char* path, std::size_t limit) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return {};
  std::string text(limit, '\0');
  const ssize_t n = read(fd, text.data(), limit);
  close(fd);
  text.resize(n > 0 ? static_cast<std::size_t>(n) : 0);
  return text;
}

void digest(const std::string& text, std::uint8_t (&id)[16]) {
  const Fingerprint print = fingerprint(std::as_bytes(std::span(text)));
  std::memcpy(id, &print, sizeof(id));
}

}  // namespace

void read_boot_id(std::uint8_t (&id)[16]) {
  digest(read_text("/proc/sys/kernel/random/boot_id", 64), id);
}

void read_machine_id(std::uint8_t (&id)[16]) {
  const std::string text = read_text("/etc/machine-id", 64);
  if (text.size() >= 32) {
    digest(text, id);
  } else {
    read_boot_id(id);
  }
}

ControlBlock::ControlBlock(const std::string& path, const PoolMemory& pool, std::uint32_t mode)
    : path_(path) {
  const Superblock& sb = pool.sb();
  map_words_ = (sb.slots_per_extent + 63) / 64;
  extents_at_ = kProcessesAt + kMaxProcesses * sizeof(ProcessEntry);
  map_at_ = extents_at_ + sb.extents * sizeof(ExtentControl);
  slots_at_ = round_up(map_at_ + std::uint64_t{sb.extents} * map_words_ * 8, 4096);
  writers_at_ = slots_at_ + std::uint64_t{pool.slot_limit()} * sizeof(SlotControl);
  bytes_ = round_up(writers_at_ + pool.slot_limit(), 4096);
  auto file = PoolFile::create(path, bytes_, mode);
  if (!file) file.emplace(PoolFile::open_existing(path));
  if (file->size() == 0) file->size_if_empty(bytes_);
  if (file->size() < bytes_) {
    throw Error(ErrorKind::pool_io,
                path + " is not the control block of this pool: remove it and try again");
  }
  mapping_ = Mapping::map(std::move(*file));
  mapping_->file().reserve(0, slots_at_);
}

bool ControlBlock::linked() const noexcept {
  struct stat mine {};
  struct stat named {};
  return fstat(fd(), &mine) == 0 && stat(path_.c_str(), &named) == 0 &&
         mine.st_ino == named.st_ino && mine.st_dev == named.st_dev;
}

void ControlBlock::reserve_slots(std::uint32_t first, std::uint32_t count) const {
  mapping_->file().reserve(slots_at_ + std::uint64_t{first} * sizeof(SlotControl),
                            std::uint64_t{count} * sizeof(SlotControl));
  mapping_->file().reserve(writers_at_ + first, count);
}

bool ControlBlock::matches(const PoolMemory& pool, std::uint32_t host) const noexcept {
  const ControlHeader& h = header();
  std::uint8_t boot[16];
  read_boot_id(boot);
  return h.magic == kControlMagic && h.version == kControlVersion && h.ready == 1 &&
         h.host == host && h.bytes == bytes_ && h.epoch == pool.sb().epoch &&
         std::memcmp(h.uuid, pool.sb().uuid, sizeof(h.uuid)) == 0 &&
         std::memcmp(h.boot_id, boot, sizeof(boot)) == 0;
}

void ControlBlock::reset(const PoolMemory& pool, std::uint32_t host) const {
  ControlHeader& h = header();
  h.ready = 0;
  std::atomic_thread_fence(std::memory_order_seq_cst);
  std::memset(mapping_->base(), 0, slots_at_);
  mapping_->file().punch(slots_at_, bytes_ - slots_at_);
  h.magic = kControlMagic;
  h.version = kControlVersion;
  std::memcpy(h.uuid, pool.sb().uuid, sizeof(h.uuid));
  h.epoch = pool.sb().epoch;
  read_boot_id(h.boot_id);
  read_machine_id(h.machine);
  h.host = host;
  h.bytes = bytes_;
  h.slots.initialise();
  if (getrandom(&h.nonce, sizeof(h.nonce), 0) != sizeof(h.nonce)) {
    throw Error(ErrorKind::pool_io, "getrandom failed");
  }
}

}  // namespace beluga
