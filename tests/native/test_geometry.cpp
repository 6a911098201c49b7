#include <bit>
#include <cstring>
#include <random>
#include <vector>

#include "check.hpp"
#include "geometry.hpp"

using namespace beluga;

namespace {

constexpr std::uint64_t KiB = 1024;
constexpr std::uint64_t MiB = 1024 * KiB;
constexpr std::uint64_t GiB = 1024 * MiB;
constexpr std::uint64_t TiB = 1024 * GiB;

Superblock plan(std::vector<std::uint64_t> devices, FormatOptions options = {}) {
  Superblock sb = plan_pool(devices, options);
  sb.crc = superblock_crc(sb);
  return sb;
}

/// Every address that PoolMemory computes from it lies inside its device.
void check_bounds(const Superblock& sb, const std::vector<std::uint64_t>& devices) {
  const unsigned __int128 slots = static_cast<unsigned __int128>(sb.extents) * sb.slots_per_extent;
  const unsigned __int128 metadata = sb.metadata_bytes;
  const auto within = [&](std::uint64_t offset, unsigned __int128 bytes) {
    CHECK(offset % kLine == 0);
    CHECK(offset + bytes <= metadata);
  };
  within(sb.hosts_offset, static_cast<unsigned __int128>(sb.host_stride) * sb.max_hosts);
  within(sb.index_offset, static_cast<unsigned __int128>(sb.buckets) * sb.max_hosts * kLine);
  within(sb.headers_offset, static_cast<unsigned __int128>(sb.extents) * kLine);
  within(sb.hot_offset, slots * kLine);
  within(sb.cold_offset, slots * sb.record_bytes);
  within(sb.stamps_offset, slots * 4 * sb.max_hosts);
  CHECK(sb.host_stride >= kClaimsOffset + sb.extents);
  CHECK(sb.max_hosts >= 1 && sb.max_hosts <= kMaxHosts);
  CHECK(slots < 0xffff'fff0u);
  std::uint32_t extents = 0;
  for (std::uint32_t d = 0; d < sb.device_count; ++d) {
    const DeviceEntry& device = sb.devices[d];
    CHECK_EQ(device.first_extent, extents);
    CHECK(device.payload_offset >= (d == 0 ? sb.metadata_bytes : kSuperblockBytes));
    CHECK(static_cast<unsigned __int128>(device.payload_offset) +
              static_cast<unsigned __int128>(device.extents) * sb.extent_size <=
          devices[d]);
    extents += device.extents;
  }
  CHECK_EQ(extents, sb.extents);
}

void plans_fit_and_are_valid() {
  for (const std::uint64_t size : {MiB, 3 * MiB + 4096, 64 * MiB, GiB, 100 * GiB, 8 * TiB}) {
    for (const std::uint32_t hosts : {1u, 2u, 64u}) {
      for (const std::uint64_t hint : {std::uint64_t{0}, 64 * KiB, 16 * MiB}) {
        FormatOptions options;
        options.max_hosts = hosts;
        options.chunk_hint = hint;
        const std::vector<std::uint64_t> devices{size};
        Superblock sb;
        try {
          sb = plan(devices, options);
        } catch (const Error& error) {
          CHECK(error.kind == ErrorKind::invalid_argument);
          CHECK(size < GiB);
          continue;
        }
        validate_superblock(sb, devices);
        check_bounds(sb, devices);
        // Most of a pool is payload.
        CHECK(sb.extents * sb.extent_size >= size / 2 || size < 16 * MiB || hosts == 64);
      }
    }
  }
}

void devices_of_different_sizes_make_one_pool() {
  const std::vector<std::uint64_t> devices{GiB, 3 * GiB + 12345 * 4096, 2 * MiB, 700 * MiB};
  const Superblock sb = plan(devices);
  validate_superblock(sb, devices);
  check_bounds(sb, devices);
  CHECK_EQ(sb.device_count, 4u);
  CHECK(sb.devices[1].extents > sb.devices[0].extents);
  CHECK_EQ(sb.devices[2].extents, 0u);
  const std::vector<std::uint64_t> shorter{GiB, 3 * GiB, 2 * MiB, 700 * MiB};
  CHECK_THROWS_KIND(validate_superblock(sb, shorter), ErrorKind::pool_truncated);
  const std::vector<std::uint64_t> fewer{GiB, 4 * GiB};
  CHECK_THROWS_KIND(validate_superblock(sb, fewer), ErrorKind::invalid_argument);
  // Larger is no harm: the pool is the part that was formatted.
  const std::vector<std::uint64_t> larger{2 * GiB, 4 * GiB, GiB, GiB};
  validate_superblock(sb, larger);
}

void what_makes_no_pool_is_refused() {
  FormatOptions options;
  options.extent_size = MiB;
  CHECK_THROWS_KIND(plan({MiB}, options), ErrorKind::invalid_argument);
  options.extent_size = MiB + 1;
  CHECK_THROWS_KIND(plan({GiB}, options), ErrorKind::invalid_argument);
  options = {};
  options.max_hosts = 65;
  CHECK_THROWS_KIND(plan({GiB}, options), ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(plan({}), ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(plan(std::vector<std::uint64_t>(65, GiB)), ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(plan({std::uint64_t{1} << 60}), ErrorKind::invalid_argument);
  options = {};
  options.chunk_hint = 64;
  options.extent_size = 64 * GiB;
  CHECK_THROWS_KIND(plan({1024 * TiB}, options), ErrorKind::invalid_argument);  // too many slots
}

/// A superblock that somebody crafted, with a right CRC: refused, or all of it inside the devices.
void hostile_superblocks_never_lead_outside() {
  std::mt19937_64 random(1);
  const std::vector<std::uint64_t> devices{64 * MiB, 32 * MiB};
  FormatOptions options;
  options.max_hosts = 3;
  const Superblock good = plan(devices, options);
  std::size_t accepted = 0;
  for (int i = 0; i < 300'000; ++i) {
    Superblock sb = good;
    for (std::uint64_t n = random() % 3 + 1; n; --n) {
      auto* bytes = reinterpret_cast<std::byte*>(&sb);
      // The numbers: from the host count to the device table's entries in use, a few beyond.
      const std::size_t at = 40 + random() % (384 + 3 * sizeof(DeviceEntry) - 40) / 4 * 4;
      if (at >= 192 && at < 384) continue;
      std::uint64_t value = 0;
      switch (random() % 4) {
        case 0:
          value = random();
          break;
        case 1:
          value = std::uint64_t{1} << random() % 64;
          break;
        case 2:
          value = ~std::uint64_t{0} - random() % 256;
          break;
        default:
          std::memcpy(&value, bytes + at / 8 * 8, 8);
          value += random() % 129 - 64;
          break;
      }
      const std::size_t width = random() % 2 ? 4 : 8;
      std::memcpy(bytes + at / width * width, &value, width);
    }
    sb.crc = superblock_crc(sb);
    try {
      validate_superblock(sb, devices);
    } catch (const Error&) {
      continue;
    }
    ++accepted;
    check_bounds(sb, devices);
  }
  CHECK(accepted > 0);
}

void a_damaged_superblock_is_refused() {
  const std::vector<std::uint64_t> devices{64 * MiB};
  const Superblock good = plan(devices);
  for (std::size_t bit = 8 * 8; bit < offsetof(Superblock, reserved2) * 8; ++bit) {
    Superblock sb = good;
    reinterpret_cast<std::uint8_t*>(&sb)[bit / 8] ^= static_cast<std::uint8_t>(1 << bit % 8);
    try {
      validate_superblock(sb, devices);
    } catch (const Error& error) {
      CHECK(error.kind ==
            (bit / 8 >= 8 && bit / 8 < 12 ? ErrorKind::version_mismatch : ErrorKind::corrupt_pool));
      continue;
    }
    CHECK(!"a flipped bit is accepted");
  }
}

void waste_is_bounded() {
  for (const std::uint64_t extent : {64 * KiB, 256 * KiB, 4 * MiB, GiB}) {
    for (const std::uint64_t hint : {std::uint64_t{1} * KiB, 64 * KiB, 4 * MiB}) {
      FormatOptions options;
      options.extent_size = extent;
      options.chunk_hint = std::min(hint, extent);
      const Superblock sb = plan({std::max(16 * extent, 64 * MiB)}, options);
      const std::uint64_t step = std::max<std::uint64_t>(1, (extent / 8 - sb.min_slot) / 20'000);
      for (std::uint64_t size = sb.min_slot; size <= extent / 8; size += step) {
        const std::uint32_t count = slots_for(sb, size);
        CHECK(count >= 8 && count <= sb.slots_per_extent);
        CHECK(slot_bytes(sb, count) >= size);
        CHECK(slot_bytes(sb, count) * count <= extent);
        CHECK(count * size * 8 >= extent * 7);
      }
    }
  }
}

void every_size_has_its_slots() {
  const Superblock sb = plan({64 * MiB});
  CHECK_EQ(slots_for(sb, 0), 0u);
  CHECK_EQ(slots_for(sb, sb.extent_size), 1u);
  CHECK_EQ(slots_for(sb, sb.extent_size + 1), 0u);
  CHECK_EQ(slots_for(sb, ~std::uint64_t{0}), 0u);
  CHECK_EQ(slots_for(sb, 1), sb.slots_per_extent);
  std::uint32_t before = sb.slots_per_extent;
  for (std::uint64_t size = 1; size <= sb.extent_size; size += 97) {
    const std::uint32_t count = slots_for(sb, size);
    CHECK(count >= 1 && count <= before);  // larger chunks, fewer slots
    CHECK(slot_bytes(sb, count) >= size);
    CHECK(slot_bytes(sb, count) % kLine == 0);
    before = count;
  }
}

}  // namespace

int main() {
  plans_fit_and_are_valid();
  devices_of_different_sizes_make_one_pool();
  what_makes_no_pool_is_refused();
  hostile_superblocks_never_lead_outside();
  a_damaged_superblock_is_refused();
  waste_is_bounded();
  every_size_has_its_slots();
}
