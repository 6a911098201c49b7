#include "pool_file.hpp"

#include <fcntl.h>
#include <linux/magic.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <climits>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <limits>
#include <utility>
#include <vector>

#include "errors.hpp"

namespace beluga {

namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kDaxAlignment = 2U << 20U;  // the kernel's default for a DAX device
constexpr std::uint64_t kForeignScan = 1U << 20U;
constexpr std::uint64_t kMaxSize = static_cast<std::uint64_t>(std::numeric_limits<off_t>::max());
constexpr int kMaxRetries = 100;  // of an interrupted system call

[[noreturn]] void fail(ErrorKind kind, const std::string& message) { throw Error(kind, message); }

std::string reason(int error) { return std::string(": ") + std::strerror(error); }

std::string readable(std::uint64_t bytes) {
  static constexpr std::array<const char*, 7> kUnits = {"B",   "KiB", "MiB", "GiB",
                                                        "TiB", "PiB", "EiB"};
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), unit == 0 ? "%.0f %s" : "%.1f %s", value, kUnits[unit]);
  return text.data();
}

std::string parent_of(const std::string& path) {
  auto slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

void check_path(const std::string& path) {
  if (path.empty()) {
    fail(ErrorKind::invalid_argument, "the pool's path is empty: set beluga.pool");
  }
  if (path.find('\0') != std::string::npos) {
    fail(ErrorKind::invalid_argument, "the pool's path contains a NUL byte");
  }
}

std::string owner_and_mode(const std::string& path) {
  struct stat status {};
  if (::lstat(path.c_str(), &status) != 0) return "";
  std::array<char, 96> text{};
  std::snprintf(text.data(), text.size(), " (owned by uid %u, gid %u, mode %04o)", status.st_uid,
                status.st_gid, static_cast<unsigned>(status.st_mode & 07777U));
  return text.data();
}

[[noreturn]] void fail_permission(const std::string& path, const std::string& subject, int error) {
  if (error == EROFS) {
    fail(ErrorKind::pool_permission,
         path +
             ": the file system is read-only, and a pool is written by every host: mount it "
             "read-write (in a container: without ':ro')");
  }
  fail(ErrorKind::pool_permission,
       path + ": permission denied to uid " + std::to_string(::geteuid()) +
           owner_and_mode(subject) +
           ": run as the owner, or widen the mode with chmod or, at creation, beluga.mode");
}

[[noreturn]] void fail_no_device(const std::string& path) {
  fail(ErrorKind::pool_missing,
       path + ": there is no such device, and devices are not created here: see 'daxctl list'");
}

[[noreturn]] void fail_open(const std::string& path, int error) {
  switch (error) {
    case ENOENT:
    case ENOTDIR:
      if (parent_of(path) == "/dev") fail_no_device(path);
      fail(ErrorKind::pool_missing, path +
                                        " does not exist: create it with 'beluga format --size "
                                        "64GiB " +
                                        path + "' or set beluga.size");
    case ELOOP:
      fail(ErrorKind::not_a_pool,
           path + " goes through too many symbolic links: name the real path");
    case EACCES:
    case EPERM:
    case EROFS:
      fail_permission(path, path, error);
    case ENAMETOOLONG:
      fail(ErrorKind::invalid_argument, path + reason(error));
    case ENXIO:
    case ENODEV:
      // The node is there and no driver behind it: how a new CXL region begins, and how a device
      // looks that was given to the kernel as memory.
      fail(ErrorKind::pool_io, path + " is disabled, or the system uses it as its own memory" +
                                   reason(error) +
                                   ": 'daxctl reconfigure-device --mode=devdax " +
                                   path.substr(path.rfind('/') + 1) + "', see 'daxctl list'");
    default:
      fail(ErrorKind::pool_io, "cannot open " + path + reason(error));
  }
}

[[noreturn]] void fail_type(const std::string& path, mode_t mode) {
  std::string what;
  if (S_ISLNK(mode)) {
    std::array<char, PATH_MAX> target{};
    auto length = ::readlink(path.c_str(), target.data(), target.size() - 1);
    what = " is a symbolic link";
    if (length > 0) what += std::string(" to ") + target.data();
    what += "; links are not followed: name the real path";
  } else if (S_ISDIR(mode)) {
    what = " is a directory: name a file in it, for example " + path + "/beluga.pool";
  } else if (S_ISBLK(mode)) {
    what = " is a block device: name a DAX device (/dev/daxX.Y) or a file";
  } else if (S_ISCHR(mode)) {
    what =
        " is a character device, but no DAX device (or sysfs is not mounted): name a "
        "/dev/daxX.Y or a file";
  } else {
    what = S_ISFIFO(mode) ? " is a FIFO" : S_ISSOCK(mode) ? " is a socket" : " is no regular file";
    what += ": name a file or a DAX device (/dev/daxX.Y)";
  }
  fail(ErrorKind::not_a_pool, path + what);
}

/// sysfs directory of a character device.
std::string sysfs_directory(const std::string& sysfs, dev_t device) {
  return sysfs + "/dev/char/" + std::to_string(major(device)) + ":" + std::to_string(minor(device));
}

bool is_devdax(const std::string& directory) {
  std::array<char, PATH_MAX> target{};
  auto length = ::readlink((directory + "/subsystem").c_str(), target.data(), target.size() - 1);
  if (length <= 0) return false;
  std::string name(target.data(), static_cast<std::size_t>(length));
  return name.substr(name.rfind('/') + 1) == "dax";
}

std::optional<std::uint64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  std::string text;
  if (!(file >> text)) return std::nullopt;
  std::uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

std::uint64_t round_up(std::uint64_t size, std::uint64_t alignment) {
  if (size == 0) fail(ErrorKind::invalid_argument, "a pool of 0 bytes: set beluga.size");
  if (size > kMaxSize - (alignment - 1)) {
    fail(ErrorKind::invalid_argument,
         "a file cannot have " + std::to_string(size) + " bytes: lower beluga.size");
  }
  return (size + alignment - 1) / alignment * alignment;
}

/// Blocks the signals of this thread. A signal in the middle of a large fallocate on tmpfs undoes
/// all of it, and a program with a profiling timer would never get through.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_{};
};

/// fallocate(2), again while interrupted; 0 or the error.
int allocate(int fd, int mode, std::uint64_t offset, std::uint64_t length) {
  for (int attempt = 0; attempt < kMaxRetries; ++attempt) {
    if (::fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length)) == 0)
      return 0;
    if (errno != EINTR) return errno;
  }
  return EINTR;
}

}  // namespace

const char* to_string(DeviceKind kind) noexcept {
  switch (kind) {
    case DeviceKind::tmpfs:
      return "tmpfs";
    case DeviceKind::hugetlbfs:
      return "hugetlbfs";
    case DeviceKind::file:
      return "file";
    case DeviceKind::devdax:
      return "devdax";
  }
  return "unknown";
}

PoolFile::PoolFile(PoolFile&& other) noexcept
    : path_(std::move(other.path_)),
      fd_(std::move(other.fd_)),
      kind_(other.kind_),
      size_(other.size_),
      alignment_(other.alignment_),
      device_(other.device_),
      inode_(other.inode_),
      can_reserve_(other.can_reserve_.load(std::memory_order_relaxed)) {}

PoolFile PoolFile::open_existing(const std::string& path, const std::string& sysfs) {
  check_path(path);
  // Looked at before it is opened for good: the mere open of some devices and FIFOs has effects.
  struct stat seen {};
  {
    ProcessFd probe = ProcessFd::open(path.c_str(), O_PATH | O_NOFOLLOW);
    if (!probe.valid() || ::fstat(probe.get(), &seen) != 0) fail_open(path, errno);
  }
  bool character = S_ISCHR(seen.st_mode) && is_devdax(sysfs_directory(sysfs, seen.st_rdev));
  if (!S_ISREG(seen.st_mode) && !character) fail_type(path, seen.st_mode);

  ProcessFd fd = ProcessFd::open(path.c_str(), O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
  struct stat status {};
  if (!fd.valid()) fail_open(path, errno);
  if (::fstat(fd.get(), &status) != 0) fail_open(path, errno);
  if (status.st_dev != seen.st_dev || status.st_ino != seen.st_ino) {
    fail(ErrorKind::not_a_pool, path + " was replaced while it was being opened: try again");
  }
  PoolFile file(path, std::move(fd));
  if (character) {
    file.identify_devdax(sysfs);
  } else {
    file.identify_regular();
  }
  return file;
}

std::optional<PoolFile> PoolFile::create(const std::string& path, std::uint64_t size, mode_t mode) {
  check_path(path);
  if ((mode & ~static_cast<mode_t>(0777)) != 0) {
    fail(ErrorKind::invalid_argument,
         "beluga.mode has bits beyond 0777: give it as in chmod, 0600");
  }
  round_up(size, kPage);  // refuse a senseless size before anything exists
  std::string directory = parent_of(path);
  // A file in /dev would be a pool in the kernel's own small memory, and hide a missing device.
  struct stat parent {};
  struct stat dev {};
  struct stat self {};
  if (::lstat(path.c_str(), &self) != 0 && ::stat(directory.c_str(), &parent) == 0 &&
      ::stat("/dev", &dev) == 0 && parent.st_dev == dev.st_dev && parent.st_ino == dev.st_ino) {
    fail_no_device(path);
  }

  ProcessFd fd = ProcessFd::open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, mode);
  if (!fd.valid()) {
    int error = errno;
    switch (error) {
      case EEXIST:
        return std::nullopt;
      case ENOENT:
      case ENOTDIR:
        fail(ErrorKind::pool_missing, "cannot create " + path + ": there is no directory " +
                                          directory + ": create it or name another path");
      case EACCES:
      case EPERM:
      case EROFS:
        fail_permission(path, directory, error);
      case ENOSPC:
      case EDQUOT:
        fail(ErrorKind::no_space, "cannot create " + path + reason(error) +
                                      " (no inode left): remove files or raise the limit");
      case EISDIR:
        fail_type(path, S_IFDIR);
      default:
        fail_open(path, error);
    }
  }
  PoolFile file(path, std::move(fd));
  try {
    // The umask may only have narrowed the mode, so it was never wider than asked for.
    if (::fchmod(file.fd(), mode) != 0) fail_permission(path, path, errno);
    file.identify_regular();
    file.set_length(size);
  } catch (...) {
    struct stat ours {};
    struct stat there {};
    if (::fstat(file.fd(), &ours) == 0 && ::lstat(path.c_str(), &there) == 0 &&
        ours.st_dev == there.st_dev && ours.st_ino == there.st_ino) {
      ::unlink(path.c_str());
    }
    throw;
  }
  return file;
}

int PoolFile::descriptor() const {
  int fd = fd_.get();
  if (fd < 0) {
    fail(ErrorKind::forked_handle,
         path_ + " was opened before this process was forked: attach to the pool again in it");
  }
  return fd;
}

void PoolFile::identify_regular() {
  struct stat status {};
  struct statfs system {};
  if (::fstat(descriptor(), &status) != 0 || ::fstatfs(descriptor(), &system) != 0) {
    fail(ErrorKind::pool_io, "cannot examine " + path_ + reason(errno));
  }
  size_ = static_cast<std::uint64_t>(status.st_size);
  device_ = status.st_dev;
  inode_ = status.st_ino;
  auto magic = static_cast<std::uint32_t>(system.f_type);
  if (magic == static_cast<std::uint32_t>(HUGETLBFS_MAGIC)) {
    kind_ = DeviceKind::hugetlbfs;
    alignment_ = static_cast<std::uint64_t>(system.f_bsize);
  } else {
    kind_ = magic == static_cast<std::uint32_t>(TMPFS_MAGIC) ? DeviceKind::tmpfs : DeviceKind::file;
    alignment_ = kPage;
  }
}

void PoolFile::identify_devdax(const std::string& sysfs) {
  struct stat status {};
  if (::fstat(descriptor(), &status) != 0) {
    fail(ErrorKind::pool_io, "cannot examine " + path_ + reason(errno));
  }
  std::string directory = sysfs_directory(sysfs, status.st_rdev);
  auto size = read_number(directory + "/size");  // st_size of a device is 0
  if (!size || *size == 0 || *size > kMaxSize) {
    fail(ErrorKind::pool_io, path_ + ": no valid size in " + directory +
                                 "/size: is the device enabled? See 'daxctl list'");
  }
  std::optional<std::uint64_t> alignment;
  for (const char* name : {"/align", "/device/align", "/dax_region/align"}) {
    if (!alignment) alignment = read_number(directory + name);
  }
  kind_ = DeviceKind::devdax;
  device_ = status.st_rdev;
  inode_ = 0;
  alignment_ = alignment.value_or(kDaxAlignment);
  if (alignment_ < kPage || (alignment_ & (alignment_ - 1)) != 0 || alignment_ > *size) {
    fail(ErrorKind::pool_io, path_ + ": alignment " + std::to_string(alignment_) +
                                 " makes no sense for a device of " + std::to_string(*size) +
                                 " bytes: see 'daxctl list'");
  }
  size_ = *size / alignment_ * alignment_;
}

std::uint64_t PoolFile::current_size() const {
  int fd = descriptor();
  if (kind_ == DeviceKind::devdax) return size_;  // cannot change while it is open
  struct stat status {};
  if (::fstat(fd, &status) != 0)
    fail(ErrorKind::pool_io, "cannot examine " + path_ + reason(errno));
  return static_cast<std::uint64_t>(status.st_size);
}

void PoolFile::set_length(std::uint64_t size) {
  std::uint64_t rounded = round_up(size, alignment_);
  int result = -1;
  for (int attempt = 0; attempt < kMaxRetries; ++attempt) {
    result = ::ftruncate(descriptor(), static_cast<off_t>(rounded));
    if (result == 0 || errno != EINTR) break;
  }
  if (result == 0) {
    size_ = rounded;
    return;
  }
  int error = errno;
  switch (error) {
    case EFBIG:
    case EINVAL:
      fail(ErrorKind::invalid_argument, path_ + " cannot have " + readable(rounded) +
                                            " on this file system (or 'ulimit -f' is lower): "
                                            "lower beluga.size");
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
      fail(ErrorKind::no_space, no_space_message(rounded, error));
    case EPERM:
    case EACCES:
      fail_permission(path_, path_, error);
    default:
      fail(ErrorKind::pool_io, "cannot size " + path_ + reason(error));
  }
}

bool PoolFile::size_if_empty(std::uint64_t size) {
  std::uint64_t now = current_size();
  if (now != 0) {
    size_ = now;
    return false;
  }
  set_length(size);
  return true;
}

void PoolFile::grow(std::uint64_t size) {
  std::uint64_t now = current_size();
  if (size <= now) {
    size_ = now;
    return;
  }
  if (kind_ == DeviceKind::devdax) {
    fail(ErrorKind::invalid_argument, path_ + " has " + readable(size_) + ", less than the " +
                                          readable(size) +
                                          " asked for: lower beluga.size or leave it out");
  }
  set_length(size);
}

bool PoolFile::holds_foreign_data() const {
  int fd = descriptor();
  if (kind_ == DeviceKind::devdax) return false;
  std::vector<char> buffer(64U << 10U);
  std::uint64_t scanned = 0;
  off_t position = 0;
  // Holes are skipped, or an image that begins with a hole would pass for an empty file. Bounded:
  // each turn reads at least one byte of the first MiB of data.
  while (scanned < kForeignScan) {
    off_t data = ::lseek(fd, position, SEEK_DATA);
    if (data < 0) {
      if (errno == ENXIO) return false;  // only a hole is left
      data = position;                   // no SEEK_DATA here (hugetlbfs): read from the start
    }
    ssize_t count = ::pread(fd, buffer.data(), buffer.size(), data);
    if (count < 0 && errno == EINTR) {
      ++scanned;
      continue;
    }
    if (count < 0) fail(ErrorKind::pool_io, "cannot read " + path_ + reason(errno));
    if (count == 0) return false;
    if (std::any_of(buffer.data(), buffer.data() + count, [](char byte) { return byte != 0; })) {
      return true;
    }
    scanned += static_cast<std::uint64_t>(count);
    position = data + count;
  }
  return false;
}

void PoolFile::check_range(std::uint64_t offset, std::uint64_t length) const {
  if (length == 0 || offset > size_ || length > size_ - offset) {
    fail(ErrorKind::invalid_argument, path_ + ": range [" + std::to_string(offset) + ", +" +
                                          std::to_string(length) + ") lies outside its " +
                                          std::to_string(size_) + " bytes");
  }
}

std::uint64_t PoolFile::free_bytes() const {
  struct statvfs system {};
  int fd = descriptor();
  if (kind_ == DeviceKind::devdax) return 0;
  if (::fstatvfs(fd, &system) != 0) {
    fail(ErrorKind::pool_io, "cannot examine the file system of " + path_ + reason(errno));
  }
  if (system.f_blocks == 0) {  // mounted without a limit: statvfs knows nothing
    if (kind_ != DeviceKind::hugetlbfs) return kMaxSize;
    auto pages = read_number("/sys/kernel/mm/hugepages/hugepages-" +
                             std::to_string(alignment_ / 1024) + "kB/free_hugepages");
    return std::min(pages.value_or(0), kMaxSize / alignment_) * alignment_;
  }
  std::uint64_t bytes = 0;
  if (__builtin_mul_overflow(static_cast<std::uint64_t>(system.f_bavail),
                             static_cast<std::uint64_t>(system.f_frsize), &bytes)) {
    return kMaxSize;
  }
  return bytes;
}

std::string PoolFile::no_space_message(std::uint64_t wanted, int error) const {
  std::string message = path_ + ": no room for " + readable(wanted) + " more";
  if (error == ENOMEM) {
    return message +
           ": out of memory: raise the memory limit of the container, or lower beluga.size";
  }
  message += ": the file system of " + parent_of(path_) + " (" +
             (kind_ == DeviceKind::file ? "disk or other" : to_string(kind_)) + ") has " +
             readable(free_bytes()) + " free: ";
  if (error == EDQUOT) return message + "raise the disk quota, or lower beluga.size";
  if (kind_ == DeviceKind::hugetlbfs) {
    return message + "raise vm.nr_hugepages, or lower beluga.size";
  }
  if (path_.rfind("/dev/shm/", 0) == 0) {
    return message +
           "Docker gives /dev/shm 64 MiB unless told otherwise: start the container with "
           "--shm-size (Kubernetes: an emptyDir with medium Memory), or lower beluga.size";
  }
  if (kind_ == DeviceKind::tmpfs) {
    return message + "remount it with a larger size=, or lower beluga.size";
  }
  return message + "free some, or lower beluga.size";
}

bool PoolFile::reserve(std::uint64_t offset, std::uint64_t length) const {
  int fd = descriptor();
  check_range(offset, length);
  if (kind_ == DeviceKind::devdax) return true;
  if (!can_reserve_.load(std::memory_order_relaxed)) return false;
  int error = 0;
  {
    SignalsBlocked blocked;
    error = allocate(fd, 0, offset, length);
  }
  switch (error) {
    case 0:
      return true;
    case EOPNOTSUPP:
    case ENOSYS:
      can_reserve_.store(false, std::memory_order_relaxed);
      return false;
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
      fail(ErrorKind::no_space, no_space_message(length, error));
    default:
      fail(ErrorKind::pool_io, "cannot reserve space for " + path_ + reason(error));
  }
}

void PoolFile::punch(std::uint64_t offset, std::uint64_t length) const {
  int fd = descriptor();
  check_range(offset, length);
  if (kind_ == DeviceKind::devdax) return;
  int error = allocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
  if (error != 0 && error != EOPNOTSUPP && error != ENOSYS) {
    fail(ErrorKind::pool_io, "cannot give space of " + path_ + " back" + reason(error));
  }
}

}  // namespace beluga
