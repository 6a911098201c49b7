#include "format.hpp"

#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "cache_instructions.hpp"
#include "clock.hpp"
#include "control_path.hpp"
#include "errors.hpp"
#include "range_lock.hpp"
#include "visibility.hpp"

namespace beluga {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

/// Whether hosts are coherent is not known yet, or may have been otherwise before: always as if they were not.
using Careful = Noncoherent<CacheMachine>;

std::uint64_t magic_of(const Mapping& device) {
  Careful::observe(Point::superblock, device.base(), kSuperblockBytes);
  Careful::observe_fence(Point::superblock);
  return Careful::load(reinterpret_cast<const std::uint64_t*>(device.base()));
}

bool is_magic(std::uint64_t magic) { return magic == kMagic || magic == kMagicPartial; }

[[noreturn]] void throw_foreign(const PoolFile& file) {
  throw Error(ErrorKind::not_a_pool,
              file.path() +
                  " holds data that is not a pool; it was not touched. Name another file, "
                  "or remove this one first");
}

/// Refuses a regular file that is neither a pool nor empty; without mapping it, before it is resized.
void check_resizable(const PoolFile& file) {
  std::uint64_t magic = 0;
  const bool whole = pread(file.fd(), &magic, sizeof(magic), 0) == sizeof(magic);
  if (!(whole && is_magic(magic)) && file.holds_foreign_data()) throw_foreign(file);
}

/// Refuses to overwrite what is not ours.
void check_formattable(const Mapping& device, bool force) {
  const PoolFile& file = device.file();
  if (device.size() < kSuperblockBytes) {
    throw Error(ErrorKind::not_a_pool, file.path() + " has " + std::to_string(device.size()) +
                                           " bytes: too small for a pool; it was not touched");
  }
  if (is_magic(magic_of(device))) return;
  if (file.kind() == DeviceKind::devdax) {
    const auto* words = reinterpret_cast<const std::uint64_t*>(device.base());
    const bool blank =
        std::all_of(words, words + kSuperblockBytes / 8, [](std::uint64_t w) { return w == 0; });
    if (!blank && !force) {
      throw Error(
          ErrorKind::not_a_pool,
          file.path() +
              " holds data that is not a pool: make sure that nobody uses this device, then "
              "format it with --force");
    }
    return;
  }
  if (file.holds_foreign_data()) throw_foreign(file);
}

/// Host ids of which some process of this machine is attached.
std::vector<std::uint32_t> attached_hosts(int fd) {
  std::vector<std::uint32_t> hosts;
  for (std::uint32_t h = 0; h < kMaxHosts; ++h) {
    if (held_by_other(fd, kAttachLockByte + h)) hosts.push_back(h);
  }
  return hosts;
}

/// Member hosts whose tick moves: on a device that machines share, no lock tells of them.
std::vector<std::uint32_t> beating_hosts(const PoolMemory& pool) {
  std::vector<std::uint32_t> before(pool.sb().max_hosts);
  const auto tick = [&](std::uint32_t h) {
    const HostHeartbeat& beat = pool.host(h)->heartbeat;
    Careful::observe(Point::heartbeat, &beat, kLine);
    Careful::observe_fence(Point::heartbeat);
    return Careful::load(&beat.tick);
  };
  for (std::uint32_t h = 0; h < pool.sb().max_hosts; ++h) before[h] = tick(h);
  std::this_thread::sleep_for(milliseconds(500));
  std::vector<std::uint32_t> hosts;
  for (std::uint32_t h = 0; h < pool.sb().max_hosts; ++h) {
    if (tick(h) != before[h]) hosts.push_back(h);
  }
  return hosts;
}

std::string list_text(const std::vector<std::uint32_t>& hosts) {
  std::string text;
  for (const std::uint32_t h : hosts) text += (text.empty() ? "" : ", ") + std::to_string(h);
  return text;
}

/// The earlier pool on these devices, if its superblock is intact.
std::shared_ptr<PoolMemory> earlier_pool(const std::vector<std::shared_ptr<Mapping>>& devices) {
  if (magic_of(*devices[0]) != kMagic) return nullptr;
  Superblock sb;
  std::memcpy(&sb, devices[0]->base(), sizeof(sb));
  std::vector<std::uint64_t> sizes;
  for (const auto& device : devices) sizes.push_back(device->size());
  try {
    validate_superblock(sb, sizes);
  } catch (const Error&) {
    return nullptr;
  }
  return std::make_shared<PoolMemory>(devices, sb);
}

/// Makes sure that nobody uses the pool any more; with force, drives them out.
void vacate(const std::vector<std::shared_ptr<Mapping>>& devices, bool force) {
  const int fd = devices[0]->file().fd();
  std::vector<std::uint32_t> users = attached_hosts(fd);
  const auto earlier = earlier_pool(devices);
  const bool shared_device = devices[0]->file().kind() == DeviceKind::devdax;
  if (users.empty() && earlier && shared_device) users = beating_hosts(*earlier);
  if (users.empty()) return;
  if (!force) {
    throw Error(ErrorKind::pool_busy,
                devices[0]->file().path() + " is in use (host " + list_text(users) +
                    "): stop its users first, or format with --force, which turns "
                    "everything they have cached into misses");
  }
  auto* shared = reinterpret_cast<Superblock*>(devices[0]->base());
  Careful::store(&shared->epoch, Careful::load(&shared->epoch) + 1);
  Careful::store(&shared->magic, kMagicPartial);
  Careful::confirm(Point::superblock, shared, kLine);
  // Users notice at their next heartbeat and close. One that is stopped finds the moved epoch when
  // it wakes.
  const auto deadline = steady_clock::now() + milliseconds(10'000);
  while (steady_clock::now() < deadline) {
    users = attached_hosts(fd);
    if (users.empty() && !shared_device) return;
    std::this_thread::sleep_for(milliseconds(20));
  }
}

void zero_metadata(const std::vector<std::shared_ptr<Mapping>>& devices, const Superblock& sb) {
  for (std::uint32_t d = 0; d < sb.device_count; ++d) {
    const std::uint64_t bytes = d == 0 ? sb.metadata_bytes : kSuperblockBytes;
    if (devices[d]->file().kind() == DeviceKind::devdax) {
      std::memset(devices[d]->base() + 8, 0, bytes - 8);
      Careful::confirm(Point::superblock, devices[d]->base(), bytes);
    } else {
      // A hole reads as zeros, at once and whatever the size; it also gives old payload back.
      devices[d]->file().punch(4096, devices[d]->size() / 4096 * 4096 - 4096);
      std::memset(devices[d]->base() + 8, 0, 4096 - 8);
    }
  }
}

std::vector<std::shared_ptr<Mapping>> map_devices(std::vector<PoolFile> files) {
  std::vector<std::shared_ptr<Mapping>> devices;
  for (std::size_t i = 0; i < files.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      if (files[i].same_as(devices[j]->file())) {
        throw Error(ErrorKind::invalid_argument,
                    files[i].path() + " is named twice as a device of the pool");
      }
    }
    devices.push_back(Mapping::map(std::move(files[i])));
  }
  return devices;
}

Superblock format_devices(const std::vector<std::shared_ptr<Mapping>>& devices,
                          const FormatOptions& options) {
  for (const auto& device : devices) check_formattable(*device, options.force);
  std::vector<std::uint64_t> sizes;
  for (const auto& device : devices) sizes.push_back(device->size());
  Superblock sb = plan_pool(sizes, options);
  vacate(devices, options.force);

  std::uint64_t epoch = 0;
  if (is_magic(magic_of(*devices[0]))) {
    Superblock old;
    std::memcpy(&old, devices[0]->base(), sizeof(old));
    epoch = old.epoch;
    for (std::uint32_t h = 0; h < kMaxHosts; ++h)
      unlink(control_path(default_control_dir(), old.uuid, h).c_str());
  }
  sb.epoch = epoch + 1;
  sb.created_unix_ms = unix_ms();
  if (getrandom(sb.uuid, sizeof(sb.uuid), 0) != sizeof(sb.uuid)) {
    throw Error(ErrorKind::pool_io, "getrandom failed");
  }
  for (const auto& device : devices) {
    Careful::store(reinterpret_cast<std::uint64_t*>(device->base()), kMagicPartial);
    Careful::confirm(Point::superblock, device->base(), kLine);
  }
  zero_metadata(devices, sb);
  // What every process touches gets its storage now. Descriptors and payload follow extent by
  // extent.
  reserve_range(*devices[0], 0, sb.hot_offset);
  // Device 0 goes last: its magic is the commit.
  for (std::uint32_t i = sb.device_count; i-- > 0;) {
    Superblock copy = sb;
    copy.device_index = i;
    copy.crc = superblock_crc(copy);
    store_words<Careful>(devices[i]->base() + 8, reinterpret_cast<const std::byte*>(&copy) + 8,
                          sizeof(copy) - 8);
    Careful::confirm(Point::superblock, devices[i]->base(), sizeof(copy));
    Careful::store(reinterpret_cast<std::uint64_t*>(devices[i]->base()), kMagic);
    Careful::confirm(Point::superblock, devices[i]->base(), kLine);
    if (i == 0) sb = copy;
  }
  if (std::any_of(devices.begin(), devices.end(), [](const auto& d) { return d->faulted(); })) {
    throw Error(ErrorKind::no_space,
                devices[0]->file().path() + ": its file system ran full during format");
  }
  sb.magic = kMagic;
  return sb;
}

struct Opened {
  std::vector<PoolFile> files;
  bool created = false;
};

/// Opens every device; creates missing files when a size is given.
Opened open_files(std::span<const std::string> paths, std::uint64_t size, std::uint32_t mode,
                  bool grow) {
  if (paths.empty())
    throw Error(ErrorKind::invalid_argument, "no pool path given: set beluga.pool");
  Opened opened;
  for (const std::string& path : paths) {
    bool have = false;
    if (size) {
      if (access(path.c_str(), F_OK) != 0) {
        if (auto file = PoolFile::create(path, size, mode)) {
          opened.files.push_back(std::move(*file));
          opened.created = have = true;
        }
      }
    }
    if (!have) opened.files.push_back(PoolFile::open_existing(path));
    PoolFile& file = opened.files.back();
    if (file.size() == 0 && size) {
      file.size_if_empty(size);
      opened.created = true;
    }
    if (grow && size && file.kind() != DeviceKind::devdax && file.size() != size && !have) {
      const std::uint64_t rounded =
          (size + file.alignment() - 1) / file.alignment() * file.alignment();
      if (file.size() > rounded) {
        throw Error(ErrorKind::invalid_argument,
                    path + " exists with " + std::to_string(file.size()) +
                        " bytes, more than the size asked for: remove it first, or "
                        "format without --size");
      }
      check_resizable(file);
      file.grow(size);
    }
  }
  return opened;
}

/// A file of length 0, said in the user's terms.
[[noreturn]] void throw_empty(const std::string& path) {
  throw Error(ErrorKind::not_a_pool, path +
                                         " is empty: format it with 'beluga format --size 64GiB " +
                                         path + "', or set beluga.size");
}

std::shared_ptr<PoolMemory> validated(std::vector<std::shared_ptr<Mapping>> devices) {
  const std::string& path = devices[0]->file().path();
  std::vector<std::uint64_t> sizes;
  for (const auto& device : devices) {
    if (device->size() < kSuperblockBytes) {
      throw Error(ErrorKind::not_a_pool, device->file().path() + " is not a pool: it has " +
                                             std::to_string(device->size()) + " bytes");
    }
    sizes.push_back(device->size());
  }
  const std::uint64_t magic = magic_of(*devices[0]);
  if (magic == kMagicPartial) {
    throw Error(
        ErrorKind::half_formatted,
        path +
            " is half-formatted: a format of it was interrupted; run 'beluga format' on it again");
  }
  if (magic != kMagic) {
    throw Error(ErrorKind::not_a_pool,
                path +
                    " is not a pool: no superblock at its start. Check beluga.pool, or "
                    "create one with 'beluga format'");
  }
  Superblock sb;
  std::memcpy(&sb, devices[0]->base(), sizeof(sb));
  validate_superblock(sb, sizes);
  for (std::uint32_t d = 1; d < sb.device_count; ++d) {
    Superblock other;
    std::memcpy(&other, devices[d]->base(), sizeof(other));
    if (other.magic != kMagic || other.crc != superblock_crc(other) || other.device_index != d ||
        std::memcmp(other.uuid, sb.uuid, sizeof(sb.uuid)) != 0) {
      throw Error(ErrorKind::not_a_pool,
                  devices[d]->file().path() + " is not device " + std::to_string(d) +
                      " of the pool at " + path +
                      ": name the devices in the order in which they were formatted");
    }
  }
  return std::make_shared<PoolMemory>(std::move(devices), sb);
}

}  // namespace

std::string uuid_text(const std::uint8_t (&uuid)[16]) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (std::size_t i = 0; i < 16; ++i) {
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += digits[uuid[i] >> 4];
    text += digits[uuid[i] & 15];
  }
  return text;
}

Superblock format_pool(std::span<const std::string> paths, std::uint64_t size,
                       const FormatOptions& options) {
  Opened opened = open_files(paths, size, options.mode, true);
  for (const PoolFile& file : opened.files) {
    if (file.size() == 0) throw_empty(file.path());
  }
  // The lock is declared after the devices, so that it is released before their descriptors close.
  const auto devices = map_devices(std::move(opened.files));
  const auto lock =
      RangeLock::try_take(devices[0]->file().fd(), kFormatLockByte, LockMode::exclusive);
  if (!lock) {
    throw Error(ErrorKind::pool_busy,
                paths[0] + " is being formatted by another process right now");
  }
  return format_devices(devices, options);
}

std::shared_ptr<PoolMemory> open_pool(std::span<const std::string> paths, std::uint32_t wait_ms) {
  const auto deadline = steady_clock::now() + milliseconds(wait_ms);
  for (;;) {
    Opened opened = open_files(paths, 0, 0, false);
    const int fd = opened.files[0].fd();
    if (!held_by_other(fd, kFormatLockByte)) {
      for (const PoolFile& file : opened.files) {
        if (file.size() == 0) throw_empty(file.path());
      }
      return validated(map_devices(std::move(opened.files)));
    }
    if (steady_clock::now() >= deadline) {
      throw Error(ErrorKind::pool_busy,
                  paths[0] + " is being formatted by another process: try again when it is done");
    }
    std::this_thread::sleep_for(milliseconds(5));
  }
}

std::shared_ptr<PoolMemory> open_or_format_pool(std::span<const std::string> paths,
                                                std::uint64_t size, const FormatOptions& options,
                                                std::uint32_t wait_ms) {
  const auto deadline = steady_clock::now() + milliseconds(wait_ms);
  Opened opened = open_files(paths, size, options.mode, false);
  for (const PoolFile& file : opened.files) {
    if (file.size() == 0) throw_empty(file.path());
  }
  const auto devices = map_devices(std::move(opened.files));
  // Whoever created the file formats it; so does the next one when the creator died before it
  // began.
  const auto lock =
      RangeLock::take(devices[0]->file().fd(), kFormatLockByte, LockMode::exclusive, deadline);
  if (!lock) {
    throw Error(ErrorKind::pool_busy,
                paths[0] + " is being formatted by another process: try again when it is done");
  }
  const bool blank = devices[0]->size() >= kSuperblockBytes && magic_of(*devices[0]) == 0 &&
                     devices[0]->file().kind() != DeviceKind::devdax &&
                     !devices[0]->file().holds_foreign_data();
  if (size && blank) format_devices(devices, options);
  return validated(devices);
}

}  // namespace beluga
