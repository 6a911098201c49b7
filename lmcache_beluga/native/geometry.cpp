#include "geometry.hpp"

#include <algorithm>
#include <bit>
#include <cstring>

#include "crc32c.hpp"
#include "errors.hpp"

namespace beluga {
namespace {

constexpr std::uint64_t KiB = 1024;
constexpr std::uint64_t MiB = 1024 * KiB;
constexpr std::uint64_t GiB = 1024 * MiB;
constexpr std::uint64_t kMinExtent = 64 * KiB;
constexpr std::uint64_t kMaxExtent = 64 * GiB;
constexpr std::uint32_t kRecordBytes = 448;  // hot + cold = 512: long model names and salts fit

constexpr std::uint64_t round_up(std::uint64_t n, std::uint64_t to) {
  return (n + to - 1) / to * to;
}

std::string bytes_text(std::uint64_t n) {
  if (n >= MiB && n % MiB == 0) return std::to_string(n / MiB) + " MiB";
  if (n >= KiB && n % KiB == 0) return std::to_string(n / KiB) + " KiB";
  return std::to_string(n) + " bytes";
}

// Places the metadata regions for a given number of extents.
void place(Superblock& sb, std::uint32_t extents, std::uint64_t page) {
  const std::uint64_t slots = std::uint64_t{extents} * sb.slots_per_extent;
  std::uint64_t at = kSuperblockBytes;
  sb.extents = extents;
  sb.hosts_offset = at;
  sb.host_stride = round_up(kClaimsOffset + extents, 4096);
  at = round_up(at + sb.host_stride * sb.max_hosts, page);
  sb.index_offset = at;
  at = round_up(at + sb.buckets * sb.max_hosts * kLine, page);
  sb.headers_offset = at;
  at = round_up(at + extents * kLine, page);
  sb.hot_offset = at;
  at = round_up(at + slots * kLine, page);
  sb.cold_offset = at;
  at = round_up(at + slots * sb.record_bytes, page);
  sb.stamps_offset = at;
  // A host's stamps of one extent start on their own line: two hosts never share one.
  at = round_up(at + slots * 4 * sb.max_hosts, page);
  sb.metadata_bytes = round_up(at, std::min(sb.extent_size, 2 * MiB));
}

}  // namespace

std::uint32_t superblock_crc(const Superblock& sb) {
  const auto* bytes = reinterpret_cast<const std::byte*>(&sb);
  return crc32c(0, {bytes + 8, offsetof(Superblock, crc) - 8});
}

Superblock plan_pool(std::span<const std::uint64_t> device_bytes, const FormatOptions& options) {
  if (device_bytes.empty() || device_bytes.size() > kMaxDevices) {
    throw Error(ErrorKind::invalid_argument, "a pool is made of 1 to " +
                                                 std::to_string(kMaxDevices) + " devices, not " +
                                                 std::to_string(device_bytes.size()));
  }
  if (options.max_hosts < 1 || options.max_hosts > kMaxHosts) {
    throw Error(ErrorKind::invalid_argument, "max_hosts must be 1 to " + std::to_string(kMaxHosts) +
                                                 ", not " + std::to_string(options.max_hosts));
  }
  if (options.key_scheme.size() >= sizeof(Superblock::key_scheme)) {
    throw Error(ErrorKind::invalid_argument, "key_scheme is longer than 191 bytes");
  }
  std::uint64_t total = 0;
  for (const std::uint64_t bytes : device_bytes) {
    if (bytes >= std::uint64_t{1} << 56)
      throw Error(ErrorKind::invalid_argument, "a device of over 64 PiB");
    total += bytes;
  }
  // Regions start on huge pages where the pool is large enough for them.
  const std::uint64_t page = total >= GiB ? 2 * MiB : 4096;
  // By default the index expects at most 4 Mi chunks, so that formatting terabytes stays instant.
  const std::uint64_t hint =
      options.chunk_hint ? options.chunk_hint : std::max(256 * KiB, total >> 22);
  if (hint < 64 || hint > kMaxExtent) {
    throw Error(ErrorKind::invalid_argument, "chunk_hint must be 64 bytes to 64 GiB");
  }
  std::uint64_t extent = options.extent_size;
  if (!extent) {
    // Eight chunks to an extent bound the waste to 1/9; sixteen extents let several layouts share
    // the pool.
    extent = std::clamp(std::bit_floor(total / 16), kMinExtent, GiB);
    const std::uint64_t wanted = std::bit_ceil(hint * 8);
    if (wanted > extent) extent = std::min(wanted, std::max(extent, std::bit_floor(total / 2)));
  }
  if (!std::has_single_bit(extent) || extent < kMinExtent || extent > kMaxExtent) {
    throw Error(
        ErrorKind::invalid_argument,
        "extent_size must be a power of two from 64 KiB to 64 GiB, not " + bytes_text(extent));
  }

  Superblock sb{};
  sb.magic = kMagicPartial;
  sb.version = kFormatVersion;
  sb.header_bytes = kSuperblockBytes;
  sb.max_hosts = options.max_hosts;
  sb.device_count = static_cast<std::uint32_t>(device_bytes.size());
  sb.extent_size = extent;
  // Small slots cost metadata: 512 B of descriptor each, also where nobody ever uses them.
  sb.min_slot = std::clamp(std::bit_floor(hint / 16), std::uint64_t{1024}, 64 * KiB);
  sb.min_slot = std::min(sb.min_slot, extent / 16);
  sb.slots_per_extent =
      static_cast<std::uint32_t>(std::min<std::uint64_t>(extent / sb.min_slot, 1 << 20));
  sb.min_slot = extent / sb.slots_per_extent;
  // Two chunks to a bucket of eight entries: P(a lane overflows) is 2e-4 at a Poisson mean of 2.
  sb.buckets =
      std::bit_ceil(std::clamp<std::uint64_t>(total / hint / 2, 16, std::uint64_t{1} << 32));
  sb.record_bytes = kRecordBytes;
  sb.visibility = options.visibility;
  sb.payload_visibility = options.payload_visibility;
  sb.max_lease_ms = options.max_lease_ms;
  std::memcpy(sb.key_scheme, options.key_scheme.data(), options.key_scheme.size());

  // The other devices carry nothing but their superblock and extents.
  std::uint64_t others = 0;
  for (std::size_t d = 1; d < device_bytes.size(); ++d) {
    const std::uint64_t start = std::min(extent, 2 * MiB);
    if (device_bytes[d] > start) others += (device_bytes[d] - start) / extent;
  }
  // Device 0: as many extents as fit beside the metadata of all extents.
  std::uint64_t mine = device_bytes[0] / extent;
  for (;;) {
    const std::uint64_t count = mine + others;
    if (count && count <= 1 << 24 && count * sb.slots_per_extent < 0xffff'fff0u) {
      place(sb, static_cast<std::uint32_t>(count), page);
      if (sb.metadata_bytes + mine * extent <= device_bytes[0]) break;
    } else if (count) {
      throw Error(ErrorKind::invalid_argument,
                  "the pool would have too many slots: raise extent_size or chunk_hint");
    }
    if (mine == 0) {
      throw Error(ErrorKind::invalid_argument,
                  "a pool of " + bytes_text(total) + " is too small for extents of " +
                      bytes_text(extent) +
                      " and its metadata: raise --size (beluga.size) or lower --extent-size "
                      "(beluga.extent_size)");
    }
    // Each step frees a whole extent, and metadata is a small part of one: few steps are taken.
    const std::uint64_t over = sb.metadata_bytes + mine * extent - device_bytes[0];
    mine -= std::min(mine, std::max<std::uint64_t>(1, count ? over / extent : 1));
  }
  std::uint32_t first = 0;
  for (std::size_t d = 0; d < device_bytes.size(); ++d) {
    DeviceEntry& entry = sb.devices[d];
    entry.bytes = device_bytes[d];
    entry.payload_offset = d == 0 ? sb.metadata_bytes : std::min(extent, 2 * MiB);
    entry.first_extent = first;
    entry.extents =
        d == 0 ? static_cast<std::uint32_t>(mine)
               : static_cast<std::uint32_t>(device_bytes[d] > entry.payload_offset
                                                ? (device_bytes[d] - entry.payload_offset) / extent
                                                : 0);
    first += entry.extents;
  }
  return sb;
}

void validate_superblock(const Superblock& sb, std::span<const std::uint64_t> device_bytes) {
  const auto bad = [](const char* what) {
    throw Error(ErrorKind::corrupt_pool,
                std::string("the superblock is damaged (") + what +
                    "): nothing in this pool can be trusted; format it anew");
  };
  if (sb.version != kFormatVersion) {
    throw Error(ErrorKind::version_mismatch,
                "the pool has format version " + std::to_string(sb.version) +
                    ", this build reads version " + std::to_string(kFormatVersion) +
                    ": format the pool anew, or use the matching lmcache-beluga");
  }
  if (sb.crc != superblock_crc(sb)) bad("crc");
  if (sb.header_bytes != kSuperblockBytes) bad("header size");
  if (sb.max_hosts < 1 || sb.max_hosts > kMaxHosts) bad("hosts");
  if (sb.device_count < 1 || sb.device_count > kMaxDevices) bad("device count");
  if (!std::has_single_bit(sb.extent_size) || sb.extent_size < kMinExtent ||
      sb.extent_size > kMaxExtent) {
    bad("extent size");
  }
  if (sb.slots_per_extent < 1 || sb.slots_per_extent > 1 << 20 || sb.min_slot == 0 ||
      sb.min_slot * sb.slots_per_extent > sb.extent_size) {
    bad("slots");
  }
  if (sb.extents < 1 || sb.extents > 1 << 24 ||
      std::uint64_t{sb.extents} * sb.slots_per_extent >= 0xffff'fff0u) {
    bad("extents");
  }
  if (!std::has_single_bit(sb.buckets) || sb.buckets > std::uint64_t{1} << 33) bad("buckets");
  if (sb.record_bytes == 0 || sb.record_bytes % kLine != 0 || sb.record_bytes > 64 * KiB)
    bad("record size");
  if (sb.visibility != VisibilityMode::coherent && sb.visibility != VisibilityMode::noncoherent) {
    bad("visibility");
  }
  if (sb.max_lease_ms == 0 || sb.max_lease_ms > 1u << 30) bad("lease");
  if (sb.key_scheme[sizeof(sb.key_scheme) - 1] != 0) bad("key scheme");
  const std::uint64_t slots = std::uint64_t{sb.extents} * sb.slots_per_extent;
  struct Region {
    std::uint64_t offset, bytes;
  };
  const Region regions[] = {{sb.hosts_offset, sb.host_stride * sb.max_hosts},
                            {sb.index_offset, sb.buckets * sb.max_hosts * kLine},
                            {sb.headers_offset, sb.extents * kLine},
                            {sb.hot_offset, slots * kLine},
                            {sb.cold_offset, slots * sb.record_bytes},
                            {sb.stamps_offset, slots * 4 * sb.max_hosts}};
  if (sb.host_stride < kClaimsOffset + sb.extents || sb.host_stride % kLine != 0 ||
      sb.host_stride > std::uint64_t{1} << 32) {
    bad("host page size");
  }
  std::uint64_t end = kSuperblockBytes;
  for (const Region& region : regions) {
    if (region.offset < end || region.offset % kLine != 0 ||
        region.offset > std::uint64_t{1} << 60) {
      bad("region offset");
    }
    end = region.offset + region.bytes;
  }
  if (end > sb.metadata_bytes) bad("metadata size");
  if (sb.device_count != device_bytes.size()) {
    throw Error(ErrorKind::invalid_argument,
                "the pool is made of " + std::to_string(sb.device_count) + " devices, " +
                    std::to_string(device_bytes.size()) +
                    " given: name them all in beluga.pool, in the same order");
  }
  std::uint32_t first = 0;
  for (std::uint32_t d = 0; d < sb.device_count; ++d) {
    const DeviceEntry& entry = sb.devices[d];
    const std::uint64_t start = d == 0 ? sb.metadata_bytes : kSuperblockBytes;
    if (entry.first_extent != first || entry.payload_offset < start ||
        entry.payload_offset % kLine != 0 || entry.payload_offset > entry.bytes ||
        entry.extents > (entry.bytes - entry.payload_offset) / sb.extent_size) {
      bad("device table");
    }
    if (device_bytes[d] < entry.bytes) {
      throw Error(ErrorKind::pool_truncated,
                  "device " + std::to_string(d) + " of the pool has " +
                      std::to_string(device_bytes[d]) + " bytes, its superblock says " +
                      std::to_string(entry.bytes) +
                      ": it was truncated or replaced; format the pool anew");
    }
    first += entry.extents;
  }
  if (first != sb.extents) bad("extent count");
}

std::uint32_t slots_for(const Superblock& sb, std::uint64_t size) {
  if (size == 0 || size > sb.extent_size) return 0;
  std::uint64_t count = std::min<std::uint64_t>(sb.extent_size / size, sb.slots_per_extent);
  if (const int extra = static_cast<int>(std::bit_width(count)) - 4; extra > 0)
    count = count >> extra << extra;
  // Slots start on lines: rounding their size down may cost the last bytes of a tight fit.
  while (count > 1 && slot_bytes(sb, static_cast<std::uint32_t>(count)) < size) --count;
  return static_cast<std::uint32_t>(count);
}

}  // namespace beluga
