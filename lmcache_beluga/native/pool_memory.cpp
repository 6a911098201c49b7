#include "pool_memory.hpp"

#include "errors.hpp"

namespace beluga {

namespace {
constexpr std::uint64_t kHugeWorthwhile = std::uint64_t{1} << 28;
}

PoolMemory::PoolMemory(std::vector<std::shared_ptr<Mapping>> devices, const Superblock& checked)
    : devices_(std::move(devices)),
      sb_(checked),
      base_(devices_[0]->base()),
      kept_(std::make_unique<std::atomic<bool>[]>(checked.extents)) {
  for (std::uint32_t d = 0; d < sb_.device_count; ++d) {
    const DeviceEntry& entry = sb_.devices[d];
    const std::uint64_t bytes = std::uint64_t{entry.extents} * sb_.extent_size;
    if (sb_.extent_size >= std::uint64_t{1} << 21)
      devices_[d]->advise_huge(entry.payload_offset, bytes);
  }
  // Lookups touch lanes and hot lines at random: huge pages spare them a page walk each. In a small
  // pool they would cost more memory than they are worth.
  if (devices_[0]->size() >= kHugeWorthwhile) {
    devices_[0]->advise_huge(sb_.index_offset, sb_.headers_offset - sb_.index_offset);
    devices_[0]->advise_huge(sb_.hot_offset, sb_.cold_offset - sb_.hot_offset);
  }
}

std::uint32_t PoolMemory::device_of(std::uint32_t extent) const noexcept {
  std::uint32_t d = 0;
  while (d + 1 < sb_.device_count && extent >= sb_.devices[d + 1].first_extent) ++d;
  return d;
}

std::uint64_t PoolMemory::payload_offset(std::uint32_t extent) const noexcept {
  const DeviceEntry& entry = sb_.devices[device_of(extent)];
  return entry.payload_offset + (extent - entry.first_extent) * sb_.extent_size;
}

std::byte* PoolMemory::payload(std::uint32_t extent) const noexcept {
  std::byte* base = devices_.empty() ? base_ : devices_[device_of(extent)]->base();
  return base + payload_offset(extent);
}

void reserve_range(const Mapping& device, std::uint64_t offset, std::uint64_t bytes) {
  if (bytes == 0) return;
  if (device.file().kind() == DeviceKind::tmpfs) {
    try {
      device.prefault(offset, bytes);
      return;
    } catch (const Error& error) {
      if (error.kind != ErrorKind::no_space) throw;
      // A page that cannot be had is all that madvise tells; fallocate knows which limit was met.
    }
  }
  device.file().reserve(offset, bytes);
}

void PoolMemory::reserve_payload(std::uint32_t extent, std::uint64_t from, std::uint64_t to) const {
  if (devices_.empty() || kept_[extent].load(std::memory_order_relaxed)) return;
  reserve_range(*devices_[device_of(extent)], payload_offset(extent) + from, to - from);
}

void PoolMemory::note_kept(std::uint32_t extent) const noexcept {
  kept_[extent].store(true, std::memory_order_relaxed);
}

void PoolMemory::punch_payload(std::uint32_t extent) const {
  if (devices_.empty()) return;
  devices_[device_of(extent)]->file().punch(payload_offset(extent), sb_.extent_size);
}

void PoolMemory::reserve_descriptors(std::uint32_t extent, std::uint32_t slots) const {
  if (devices_.empty()) return;
  const std::uint64_t first = first_slot(extent);
  reserve_range(*devices_[0], sb_.hot_offset + first * kLine, slots * kLine);
  reserve_range(*devices_[0], sb_.cold_offset + first * sb_.record_bytes,
                std::uint64_t{slots} * sb_.record_bytes);
}

void PoolMemory::reserve_stamps(std::uint32_t host, std::uint32_t extent,
                                std::uint32_t slots) const {
  if (devices_.empty()) return;
  const std::uint64_t first = std::uint64_t{host} * slot_limit() + first_slot(extent);
  reserve_range(*devices_[0], sb_.stamps_offset + first * 4, std::uint64_t{slots} * 4);
}

bool PoolMemory::faulted() const noexcept {
  for (const auto& device : devices_) {
    if (device->faulted()) return true;
  }
  return false;
}

bool PoolMemory::truncated() const {
  for (std::uint32_t d = 0; d < devices_.size(); ++d) {
    if (devices_[d]->file().kind() == DeviceKind::devdax) continue;
    if (devices_[d]->file().current_size() < sb_.devices[d].bytes) return true;
  }
  return false;
}

}  // namespace beluga
