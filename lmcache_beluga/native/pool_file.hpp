#pragma once

#include <sys/types.h>

#include <atomic>
#include <cstdint>
#include <optional>
#include <string>

#include "fork_guard.hpp"

namespace beluga {

/// What stands behind one device of a pool. `file` is any other file system (ext4, famfs, ...).
enum class DeviceKind { tmpfs, hugetlbfs, file, devdax };

const char* to_string(DeviceKind kind) noexcept;

/// The open file or DAX device behind one device of a pool. All sizes and offsets are bytes.
///
/// Never follows a symbolic link in the last component, opens nothing but regular files and DAX
/// devices, and is closed in a forked child, where every method that needs the descriptor throws
/// `forked_handle`. Safe to use from several threads, except for the functions that resize.
class PoolFile {
 public:
  /// Opens what exists. Throws `pool_missing`, `not_a_pool` (a link, directory, FIFO, ...),
  /// `pool_permission`, `pool_io`, `invalid_argument` (a path no file can have). An empty file is
  /// fine: its size is 0. `sysfs` is where sysfs is mounted.
  static PoolFile open_existing(const std::string& path, const std::string& sysfs = "/sys");

  /// Creates a sparse file of `size` bytes, rounded up to alignment(), with exactly the permission
  /// bits `mode` whatever the umask. Empty when something of that name exists already: somebody
  /// else won the race, open it. Others may see the file for a moment with size 0. Throws
  /// `pool_missing` (no such directory, or a missing device in /dev), `pool_permission`,
  /// `no_space`, `invalid_argument`, `pool_io`; the file is removed again then.
  static std::optional<PoolFile> create(const std::string& path, std::uint64_t size,
                                        mode_t mode = 0600);

  PoolFile(PoolFile&& other) noexcept;
  PoolFile& operator=(PoolFile&&) = delete;
  PoolFile(const PoolFile&) = delete;
  PoolFile& operator=(const PoolFile&) = delete;
  ~PoolFile() = default;

  const std::string& path() const noexcept { return path_; }
  DeviceKind kind() const noexcept { return kind_; }
  /// Size when opened, created or last resized through this object.
  std::uint64_t size() const noexcept { return size_; }
  /// Sizes are multiples of it and so must be the pieces of a mapping: the page size of hugetlbfs,
  /// the alignment of a DAX device, else 4096. (An existing plain file may have any size.)
  std::uint64_t alignment() const noexcept { return alignment_; }
  /// Device and inode number; for a DAX device its own number and 0, so that two nodes of one
  /// device are the same.
  std::uint64_t device() const noexcept { return device_; }
  std::uint64_t inode() const noexcept { return inode_; }
  bool same_as(const PoolFile& other) const noexcept {
    return device_ == other.device_ && inode_ == other.inode_;
  }
  /// For locks (range_lock.hpp). -1 in a forked child.
  int fd() const noexcept { return fd_.get(); }

  /// The size now: smaller than size() means that somebody truncated the file.
  std::uint64_t current_size() const;

  /// Gives a file of length 0 a size; false, with size() brought up to date, when it has one
  /// already. Throws as create() does.
  bool size_if_empty(std::uint64_t size);
  /// Makes the file at least `size` bytes long (rounded up); never shorter. A DAX device has the
  /// size it has: `invalid_argument` if that is less.
  void grow(std::uint64_t size);

  /// True when the first MiB of *data* (holes skipped) of a regular file has a byte that is not
  /// zero: a file that is not a pool and must not be formatted. False for a DAX device, which
  /// cannot be read; memory behind it holds anything after a power cycle, so its magic alone
  /// decides.
  bool holds_foreign_data() const;

  /// Reserves storage for a range, so that a later store cannot meet a full file system (SIGBUS).
  /// Contents are kept. False when the file system cannot reserve (remembered, so that it is asked
  /// once); true, at no cost, on a DAX device. Throws `no_space`, having reserved nothing on tmpfs
  /// (other file systems may keep a part), `invalid_argument`, `pool_io`.
  bool reserve(std::uint64_t offset, std::uint64_t length) const;

  /// Gives the storage of a range back; it reads as zeros then. Does nothing where the device
  /// cannot.
  void punch(std::uint64_t offset, std::uint64_t length) const;

  /// Bytes free on the file system for this user; 0 for a DAX device.
  std::uint64_t free_bytes() const;

 private:
  PoolFile(std::string path, ProcessFd fd) : path_(std::move(path)), fd_(std::move(fd)) {}

  int descriptor() const;
  void identify_regular();
  void identify_devdax(const std::string& sysfs);
  void set_length(std::uint64_t size);
  void check_range(std::uint64_t offset, std::uint64_t length) const;
  std::string no_space_message(std::uint64_t wanted, int error) const;

  std::string path_;
  ProcessFd fd_;
  DeviceKind kind_ = DeviceKind::file;
  std::uint64_t size_ = 0;
  std::uint64_t alignment_ = 4096;
  std::uint64_t device_ = 0;
  std::uint64_t inode_ = 0;
  mutable std::atomic<bool> can_reserve_{true};
};

}  // namespace beluga
