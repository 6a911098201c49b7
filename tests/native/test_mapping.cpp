#include <fcntl.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "mapping.hpp"
#include "pool_file.hpp"
#include "scratch.hpp"

using namespace beluga;
namespace fs = std::filesystem;

namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint64_t kTiB = std::uint64_t{1} << 40;
#ifdef __SANITIZE_THREAD__
constexpr std::uint64_t kSparse = kTiB / 4;  // TSan leaves a program little address space
#else
constexpr std::uint64_t kSparse = 8 * kTiB;
#endif

struct stat examine(const std::string& path) {
  struct stat status {};
  CHECK(::lstat(path.c_str(), &status) == 0);
  return status;
}

mode_t mode_of(const std::string& path) { return examine(path).st_mode & 07777U; }

PoolFile create(const std::string& path, std::uint64_t size, mode_t mode = 0600) {
  auto file = PoolFile::create(path, size, mode);
  CHECK(file.has_value());
  return std::move(*file);
}

/// The message of the error that action() throws.
template <typename Action>
std::string message_of(Action action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "nothing thrown";
}

bool contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  std::cerr << "message: " << text << "\n";
  return false;
}

void creates_with_the_exact_mode(const std::string& directory) {
  for (mode_t mask : {mode_t{0777}, mode_t{0}, mode_t{022}}) {
    for (mode_t mode : {mode_t{0600}, mode_t{0660}, mode_t{0666}, mode_t{0644}}) {
      std::string path = directory + "/mode";
      mode_t before = ::umask(mask);
      PoolFile file = create(path, kMiB, mode);
      ::umask(before);
      CHECK_EQ(mode_of(path), mode);
      ::unlink(path.c_str());
    }
  }
  CHECK_THROWS_KIND(PoolFile::create(directory + "/suid", kMiB, 04600),
                    ErrorKind::invalid_argument);
  CHECK(!fs::exists(directory + "/suid"));
}

void sizes(const std::string& directory) {
  PoolFile file = create(directory + "/sizes", kMiB + 1);
  CHECK_EQ(file.size(), kMiB + kPage);
  CHECK_EQ(file.current_size(), kMiB + kPage);
  CHECK(file.kind() == DeviceKind::tmpfs);
  CHECK_EQ(file.alignment(), kPage);
  CHECK_EQ(std::string(to_string(file.kind())), "tmpfs");

  PoolFile again = PoolFile::open_existing(file.path());
  CHECK_EQ(again.size(), file.size());
  CHECK(again.same_as(file));
  CHECK(!again.same_as(create(directory + "/different", kMiB)));
  CHECK(!again.size_if_empty(2 * kMiB));
  again.grow(kMiB);  // never shorter
  CHECK_EQ(again.current_size(), kMiB + kPage);
  again.grow(2 * kMiB);
  CHECK_EQ(again.size(), 2 * kMiB);
  CHECK_EQ(file.current_size(), 2 * kMiB);

  std::ofstream(directory + "/empty").flush();
  PoolFile empty = PoolFile::open_existing(directory + "/empty");
  CHECK_EQ(empty.size(), 0U);
  CHECK_THROWS_KIND(Mapping::map(PoolFile::open_existing(directory + "/empty")),
                    ErrorKind::invalid_argument);
  CHECK(empty.size_if_empty(kMiB));
  CHECK_EQ(empty.size(), kMiB);

  for (std::uint64_t size : {std::uint64_t{0}, ~std::uint64_t{0}, std::uint64_t{1} << 63}) {
    CHECK_THROWS_KIND(PoolFile::create(directory + "/absurd", size), ErrorKind::invalid_argument);
  }
  CHECK(!fs::exists(directory + "/absurd"));
}

void refuses_what_is_no_file(const std::string& directory) {
  std::string target = directory + "/target";
  create(target, kMiB);
  std::string link = directory + "/link";
  fs::create_symlink(target, link);
  fs::create_symlink(directory + "/nowhere", directory + "/dangling");
  fs::create_symlink(directory + "/loop", directory + "/loop");
  CHECK_THROWS_KIND(PoolFile::open_existing(link), ErrorKind::not_a_pool);
  CHECK(contains(message_of([&] { PoolFile::open_existing(link); }),
                 link + " is a symbolic link to " + target));
  CHECK_THROWS_KIND(PoolFile::open_existing(directory + "/loop"), ErrorKind::not_a_pool);
  // Creation does not go through a link either, and leaves its target alone.
  CHECK(!PoolFile::create(directory + "/dangling", kMiB));
  CHECK(!fs::exists(directory + "/nowhere"));

  CHECK(::mkfifo((directory + "/fifo").c_str(), 0600) == 0);
  int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::string socket = directory + "/socket";
  std::copy(socket.begin(), socket.end(), address.sun_path);
  CHECK(::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  ::close(fd);
  for (const std::string& path : {directory, directory + "/fifo", socket, std::string("/dev/null"),
                                  std::string("/dev/tty"), std::string("/")}) {
    CHECK_THROWS_KIND(PoolFile::open_existing(path), ErrorKind::not_a_pool);
  }
}

void missing_and_malformed_paths(const std::string& directory) {
  std::string path = directory + "/missing";
  CHECK_THROWS_KIND(PoolFile::open_existing(path), ErrorKind::pool_missing);
  CHECK(contains(message_of([&] { PoolFile::open_existing(path); }),
                 "create it with 'beluga format --size 64GiB " + path + "' or set beluga.size"));
  CHECK_THROWS_KIND(PoolFile::create(path + "/deeper", kMiB), ErrorKind::pool_missing);
  CHECK(contains(message_of([&] { PoolFile::create(path + "/deeper", kMiB); }),
                 "no directory " + path));
  CHECK_THROWS_KIND(PoolFile::open_existing(""), ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(PoolFile::open_existing(std::string("a\0b", 3)), ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(PoolFile::create(std::string("a\0b", 3), kMiB), ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(PoolFile::create(directory + "/" + std::string(300, 'x'), kMiB),
                    ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(PoolFile::create(directory + "/", kMiB), ErrorKind::not_a_pool);
  // A missing device must not become a file in /dev.
  CHECK_THROWS_KIND(PoolFile::create("/dev/dax77.77", kMiB), ErrorKind::pool_missing);
  CHECK(!fs::exists("/dev/dax77.77"));
  CHECK(contains(message_of([] { PoolFile::open_existing("/dev/dax77.77"); }), "'daxctl list'"));
}

/// A new CXL region's device has a node, and no driver until it is reconfigured.
void disabled_device_tells_what_to_do(const std::string& directory) {
  constexpr unsigned kNobodys = 4095;  // beyond the majors that the kernel hands out
  std::string sysfs = directory + "/sys-disabled";
  fs::create_directories(sysfs + "/devices/dax0.0");
  fs::create_directories(sysfs + "/bus/dax");
  fs::create_directories(sysfs + "/dev/char");
  fs::create_symlink("../../devices/dax0.0", sysfs + "/dev/char/4095:7");
  fs::create_symlink("../../bus/dax", sysfs + "/devices/dax0.0/subsystem");
  std::string path = directory + "/dax0.0";
  if (::mknod(path.c_str(), S_IFCHR | 0600, makedev(kNobodys, 7)) != 0) return;  // root alone may
  auto open = [&] { PoolFile::open_existing(path, sysfs); };
  if (contains(message_of(open), "ermission denied")) return;  // a file system without devices
  CHECK_THROWS_KIND(open(), ErrorKind::pool_io);
  CHECK(contains(message_of(open), "'daxctl reconfigure-device --mode=devdax dax0.0'"));
}

void permission_names_owner_and_mode(const std::string& directory) {
  std::string path = directory + "/private";
  create(path, kMiB);
  ::chmod(directory.c_str(), 0755);
  int status = scratch::in_child([&] {
    const bool root = ::geteuid() == 0;
    if (root) {
      CHECK(::setresuid(65534, 65534, 65534) == 0);
    } else {
      ::chmod(path.c_str(), 0);
    }
    CHECK_THROWS_KIND(PoolFile::open_existing(path), ErrorKind::pool_permission);
    std::string message = message_of([&] { PoolFile::open_existing(path); });
    CHECK(contains(message, path + ": permission denied"));
    CHECK(contains(message, "owned by uid"));
    CHECK(contains(message, root ? "mode 0600" : "mode 0000"));
    if (root) {
      CHECK_THROWS_KIND(PoolFile::create(directory + "/denied", kMiB), ErrorKind::pool_permission);
    }
  });
  CHECK(scratch::succeeded(status));
  ::chmod(path.c_str(), 0600);
}

void one_creator_wins(const std::string& directory) {
  for (int round = 0; round < 50; ++round) {
    std::string path = directory + "/race";
    std::atomic<int> winners{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        if (PoolFile::create(path, kMiB)) {
          ++winners;
        } else {
          CHECK(PoolFile::open_existing(path).current_size() <= kMiB);
        }
      });
    }
    for (auto& thread : threads) thread.join();
    CHECK_EQ(winners.load(), 1);
    CHECK_EQ(fs::file_size(path), kMiB);
    ::unlink(path.c_str());
  }
}

void sees_foreign_data(const std::string& directory) {
  std::string path = directory + "/foreign";
  auto holds = [&](std::uint64_t offset, const std::string& data) {
    ::unlink(path.c_str());
    PoolFile file = create(path, 64 * kMiB);
    CHECK(!file.holds_foreign_data());
    CHECK(::pwrite(file.fd(), data.data(), data.size(), static_cast<off_t>(offset)) ==
          static_cast<ssize_t>(data.size()));
    return file.holds_foreign_data();
  };
  CHECK(holds(0, "x"));
  CHECK(holds(4095, "x"));
  CHECK(holds(32768, "CD001"));         // an ISO image begins with zeros
  CHECK(holds(50 * kMiB, "far away"));  // a disk image with a hole in front
  CHECK(!holds(0, std::string(kPage, '\0')));
  std::ofstream(directory + "/short") << "hello";
  CHECK(PoolFile::open_existing(directory + "/short").holds_foreign_data());
  // Reserved but never written is not data.
  PoolFile reserved = create(directory + "/reserved", 4 * kMiB);
  CHECK(reserved.reserve(0, 4 * kMiB));
  CHECK(!reserved.holds_foreign_data());
}

void reserves_and_punches(const std::string& directory) {
  std::string path = directory + "/reserve";
  auto mapping = Mapping::map(create(path, 8 * kMiB));
  const PoolFile& file = mapping->file();
  CHECK_EQ(examine(path).st_blocks, 0);
  CHECK(file.reserve(4 * kMiB, 2 * kMiB));
  CHECK_EQ(examine(path).st_blocks * 512, static_cast<blkcnt_t>(2 * kMiB));
  std::memset(mapping->base() + 4 * kMiB, 7, 2 * kMiB);
  CHECK(file.reserve(4 * kMiB, 2 * kMiB));  // keeps the contents
  CHECK(mapping->base()[5 * kMiB] == std::byte{7});
  file.punch(4 * kMiB, kMiB);
  CHECK_EQ(examine(path).st_blocks * 512, static_cast<blkcnt_t>(kMiB));
  CHECK(mapping->base()[4 * kMiB] == std::byte{0});
  CHECK(mapping->base()[5 * kMiB] == std::byte{7});
  CHECK_EQ(file.current_size(), 8 * kMiB);
  CHECK(!mapping->faulted());

  constexpr std::uint64_t kHuge = ~std::uint64_t{0};
  CHECK_THROWS_KIND(file.reserve(0, 8 * kMiB + 1), ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(file.reserve(kHuge, 2), ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(file.reserve(2, kHuge), ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(file.punch(8 * kMiB, 1), ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(file.reserve(0, 0), ErrorKind::invalid_argument);
  CHECK(mapping->covers(8 * kMiB, 0));
  CHECK(mapping->covers(0, 8 * kMiB));
  CHECK(!mapping->covers(1, 8 * kMiB));
  CHECK(!mapping->covers(kHuge, 2) && !mapping->covers(2, kHuge));
}

/// Checks the message and that a refused reservation leaves nothing behind.
void check_refusal(PoolFile file, std::uint64_t length, const std::string& fix) {
  auto before = examine(file.path()).st_blocks;
  CHECK_THROWS_KIND(file.reserve(0, length), ErrorKind::no_space);
  std::string message = message_of([&] { file.reserve(0, length); });
  CHECK(contains(message, "free"));
  CHECK(contains(message, fix));
  CHECK(contains(message, "lower beluga.size"));
  CHECK_EQ(examine(file.path()).st_blocks, before);
}

void full_file_system_is_an_error(const std::string& directory) {
  std::string small = directory + "/small";
  fs::create_directory(small);
  // In a mount namespace of its own the mount goes away with the child. Where it is not permitted,
  // ask for more than the whole of /dev/shm, which tmpfs refuses before it allocates.
  int status = scratch::in_child([&] {
    bool mounted = ::unshare(CLONE_NEWNS) == 0 &&
                   ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 &&
                   ::mount("tmpfs", small.c_str(), "tmpfs", 0, "size=1m") == 0;
    if (mounted) {
      // Not below /dev/shm by name, so that the message is that of any tmpfs.
      CHECK(::chdir(small.c_str()) == 0);
      check_refusal(create("pool", 4 * kMiB), 2 * kMiB, "remount it with a larger size=");
      PoolFile file = create("fits", 4 * kMiB);
      CHECK(file.reserve(0, 512 * 1024));
      CHECK_EQ(file.free_bytes(), 512U * 1024);
      // A store into a hole that was never reserved: zeros and a flag, not a dead process.
      auto mapping = Mapping::map(std::move(file));
      for (std::uint64_t at = 0; at < 4 * kMiB; at += kPage) mapping->base()[at] = std::byte{1};
      CHECK(mapping->faulted());
      auto second = Mapping::map(create("second", 4 * kMiB));
      CHECK_THROWS_KIND(second->prefault(0, 4 * kMiB), ErrorKind::no_space);
    }
    struct statvfs system {};
    CHECK(::statvfs("/dev/shm", &system) == 0);
    std::uint64_t total = std::uint64_t{system.f_blocks} * system.f_frsize;
    if (total > 0) {  // 0: mounted without a limit
      check_refusal(create(directory + "/full", total + kMiB), total + kMiB, "--shm-size");
    }
    CHECK(mounted || total > 0);
  });
  CHECK(scratch::succeeded(status));
}

void failed_creation_leaves_no_file(const std::string& directory) {
  int status = scratch::in_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    rlimit limit{kMiB, kMiB};
    CHECK(::setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK_THROWS_KIND(PoolFile::create(directory + "/limited", 2 * kMiB),
                      ErrorKind::invalid_argument);
    CHECK(!fs::exists(directory + "/limited"));
  });
  CHECK(scratch::succeeded(status));
}

void sparse_terabytes(const std::string& directory) {
  std::string path = directory + "/sparse";
  auto mapping = Mapping::map(create(path, kSparse));
  CHECK_EQ(mapping->size(), kSparse);
  CHECK_EQ(reinterpret_cast<std::uintptr_t>(mapping->base()) % (2 * kMiB), 0U);
  mapping->advise_huge(2 * kMiB, kSparse - 2 * kMiB);
  mapping->advise_huge(kSparse, kMiB);  // outside: ignored
  CHECK_EQ(examine(path).st_blocks, 0);
  CHECK(!PoolFile::open_existing(path).holds_foreign_data());
  CHECK_EQ(examine(path).st_blocks, 0);
  mapping->base()[kSparse - 1] = std::byte{42};
  auto second = Mapping::map(PoolFile::open_existing(path));
  CHECK(second->base()[kSparse - 1] == std::byte{42});
  CHECK(examine(path).st_blocks * 512 <= static_cast<blkcnt_t>(2 * kMiB));
  CHECK(mapping->file().reserve(kSparse - kMiB, kMiB));
  mapping->file().punch(kSparse - 2 * kMiB, 2 * kMiB);
  CHECK_EQ(examine(path).st_blocks, 0);
}

void prefaults(const std::string& directory) {
  std::string path = directory + "/prefault";
  auto mapping = Mapping::map(create(path, 8 * kMiB));
  mapping->base()[3 * kMiB] = std::byte{9};
  mapping->prefault(2 * kMiB + 5, 2 * kMiB);
  CHECK(mapping->base()[3 * kMiB] == std::byte{9});
  CHECK(examine(path).st_blocks * 512 >= static_cast<blkcnt_t>(2 * kMiB));
  mapping->prefault(0, 0);
  mapping->prefault(0, 8 * kMiB);
  CHECK_THROWS_KIND(mapping->prefault(1, 8 * kMiB), ErrorKind::invalid_argument);
  CHECK(::truncate(path.c_str(), static_cast<off_t>(kMiB)) == 0);
  CHECK_THROWS_KIND(mapping->prefault(0, 8 * kMiB), ErrorKind::pool_truncated);
}

void maps_plain_files(const std::string& directory) {
  // A size that is no multiple of the page: someone made the file by hand.
  std::string path = directory + "/odd";
  std::ofstream(path) << std::string(5000, 'a');
  auto mapping = Mapping::map(PoolFile::open_existing(path));
  CHECK_EQ(mapping->size(), 5000U);
  CHECK(mapping->base()[4999] == std::byte{'a'});
  mapping->prefault(0, 5000);
  CHECK(!mapping->faulted());
}

void outlives_the_handle_in_a_child(const std::string& directory) {
  auto mapping = Mapping::map(create(directory + "/fork", kMiB));
  mapping->base()[0] = std::byte{1};
  int status = scratch::in_child([&] {
    CHECK(mapping->base()[0] == std::byte{1});
    CHECK_EQ(mapping->file().fd(), -1);
    CHECK_THROWS_KIND(mapping->file().reserve(0, kPage), ErrorKind::forked_handle);
    CHECK_THROWS_KIND(mapping->file().holds_foreign_data(), ErrorKind::forked_handle);
    mapping.reset();
  });
  CHECK(scratch::succeeded(status));
  CHECK(mapping->file().reserve(0, kPage));
}

/// sysfs as the kernel lays it out, for a character device that every machine has.
void reads_dax_geometry_from_sysfs(const std::string& directory) {
  std::string sysfs = directory + "/sys";
  std::string device = sysfs + "/devices/dax0.0";
  fs::create_directories(device);
  fs::create_directories(sysfs + "/bus/dax");
  fs::create_directories(sysfs + "/dev/char");
  fs::create_symlink("../../devices/dax0.0", sysfs + "/dev/char/1:3");  // /dev/null
  fs::create_symlink("../../bus/dax", device + "/subsystem");
  CHECK_THROWS_KIND(PoolFile::open_existing("/dev/null", sysfs), ErrorKind::pool_io);
  auto write = [&](const std::string& name, const std::string& value) {
    fs::create_directories(fs::path(device + name).parent_path());
    std::ofstream(device + name) << value;
  };
  write("/size", std::to_string(kTiB) + "\n");
  CHECK_EQ(PoolFile::open_existing("/dev/null", sysfs).alignment(), 2 * kMiB);
  write("/device/align", "1073741824\n");
  CHECK_EQ(PoolFile::open_existing("/dev/null", sysfs).alignment(), 1024 * kMiB);
  write("/align", "4096\n");
  PoolFile file = PoolFile::open_existing("/dev/null", sysfs);
  CHECK(file.kind() == DeviceKind::devdax);
  CHECK_EQ(file.size(), kTiB);
  CHECK_EQ(file.current_size(), kTiB);
  CHECK_EQ(file.alignment(), kPage);
  CHECK(file.same_as(PoolFile::open_existing("/dev/null", sysfs)));
  CHECK(file.reserve(0, kTiB));
  file.punch(0, kTiB);
  CHECK(!file.holds_foreign_data());
  CHECK(!file.size_if_empty(kMiB));
  CHECK_THROWS_KIND(file.grow(2 * kTiB), ErrorKind::invalid_argument);
  for (const char* bad : {"0", "-4096", "3000", "12x", "", "99999999999999999999"}) {
    write("/size", bad);
    CHECK_THROWS_KIND(PoolFile::open_existing("/dev/null", sysfs), ErrorKind::pool_io);
  }
  write("/size", "4194304");
  write("/align", "3000000");
  CHECK_THROWS_KIND(PoolFile::open_existing("/dev/null", sysfs), ErrorKind::pool_io);
  // A character device of another subsystem.
  fs::remove(device + "/subsystem");
  fs::create_symlink("../../bus/mem", device + "/subsystem");
  CHECK_THROWS_KIND(PoolFile::open_existing("/dev/null", sysfs), ErrorKind::not_a_pool);
}

}  // namespace

int main() {
  return scratch::run([](const std::string& directory) {
    creates_with_the_exact_mode(directory);
    sizes(directory);
    refuses_what_is_no_file(directory);
    missing_and_malformed_paths(directory);
    disabled_device_tells_what_to_do(directory);
    permission_names_owner_and_mode(directory);
    one_creator_wins(directory);
    sees_foreign_data(directory);
    reserves_and_punches(directory);
    full_file_system_is_an_error(directory);
    failed_creation_leaves_no_file(directory);
    sparse_terabytes(directory);
    prefaults(directory);
    maps_plain_files(directory);
    outlives_the_handle_in_a_child(directory);
    reads_dax_geometry_from_sysfs(directory);
  });
}
