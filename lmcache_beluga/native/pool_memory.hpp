#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "geometry.hpp"
#include "layout.hpp"
#include "mapping.hpp"

namespace beluga {

/// The mapped devices of one pool, and where things lie in them.
///
/// Addresses are computed from a private, validated copy of the superblock alone; nothing that the pool
/// holds later can lead one outside the mapping. Callers pass numbers that they have checked against sb().
class PoolMemory {
 public:
  PoolMemory(std::vector<std::shared_ptr<Mapping>> devices, const Superblock& checked);
  /// Memory of one device that somebody else has mapped, with all its storage behind it.
  PoolMemory(std::byte* base, const Superblock& checked) : sb_(checked), base_(base) {}

  const Superblock& sb() const noexcept { return sb_; }
  const std::vector<std::shared_ptr<Mapping>>& devices() const noexcept { return devices_; }
  int lock_fd() const noexcept { return devices_[0]->file().fd(); }

  /// The superblock in the pool, which a forced format may change under us.
  const Superblock* shared_superblock() const noexcept { return at<Superblock>(0); }
  HostPage* host(std::uint32_t h) const noexcept { return at<HostPage>(sb_.hosts_offset + h * sb_.host_stride); }
  std::uint8_t* claims(std::uint32_t h) const noexcept {
    return at<std::uint8_t>(sb_.hosts_offset + h * sb_.host_stride + kClaimsOffset);
  }
  std::uint64_t bucket_of(std::uint64_t print_lo) const noexcept { return print_lo & (sb_.buckets - 1); }
  Lane* lane(std::uint64_t bucket, std::uint32_t h) const noexcept {
    return at<Lane>(sb_.index_offset + (bucket * sb_.max_hosts + h) * kLine);
  }
  ExtentHeader* header(std::uint32_t extent) const noexcept {
    return at<ExtentHeader>(sb_.headers_offset + extent * kLine);
  }
  HotDescriptor* hot(std::uint32_t slot) const noexcept {
    return at<HotDescriptor>(sb_.hot_offset + slot * kLine);
  }
  std::byte* cold(std::uint32_t slot) const noexcept {
    return at<std::byte>(sb_.cold_offset + std::uint64_t{slot} * sb_.record_bytes);
  }
  std::uint32_t* stamp(std::uint32_t h, std::uint32_t slot) const noexcept {
    return at<std::uint32_t>(sb_.stamps_offset + (std::uint64_t{h} * slot_limit() + slot) * 4);
  }

  /// Slot numbers are below this: extents x slots_per_extent.
  std::uint32_t slot_limit() const noexcept { return sb_.extents * sb_.slots_per_extent; }
  std::uint32_t extent_of(std::uint32_t slot) const noexcept { return slot / sb_.slots_per_extent; }
  std::uint32_t first_slot(std::uint32_t extent) const noexcept { return extent * sb_.slots_per_extent; }
  std::uint32_t device_of(std::uint32_t extent) const noexcept;
  std::byte* payload(std::uint32_t extent) const noexcept;
  /// Of the payload of an extent, within its device.
  std::uint64_t payload_offset(std::uint32_t extent) const noexcept;

  /// Makes sure that a range of an extent's payload has storage behind it; throws no_space.
  void reserve_payload(std::uint32_t extent, std::uint64_t from, std::uint64_t to) const;
  /// All of an extent's payload has storage, and keeps it while this process is attached: reserve_payload need not ask.
  /// To ask for pages that are there takes as long as to copy a quarter of them.
  void note_kept(std::uint32_t extent) const noexcept;
  void punch_payload(std::uint32_t extent) const;
  /// The same for the metadata of an extent's first `slots` slots and its owner's stamps.
  void reserve_descriptors(std::uint32_t extent, std::uint32_t slots) const;
  void reserve_stamps(std::uint32_t host, std::uint32_t extent, std::uint32_t slots) const;

  /// Can processes of other machines, whose locks are not seen here, map this pool?
  bool shared_between_machines() const noexcept {
    const DeviceKind kind = devices_[0]->file().kind();
    return kind == DeviceKind::devdax || kind == DeviceKind::file;
  }

  /// An access met a page that is gone.
  bool faulted() const noexcept;
  /// A device has become smaller than the superblock says.
  bool truncated() const;

 private:
  template <class T>
  T* at(std::uint64_t offset) const noexcept {
    return reinterpret_cast<T*>(base_ + offset);
  }

  std::vector<std::shared_ptr<Mapping>> devices_;
  Superblock sb_;
  std::byte* base_;
  std::unique_ptr<std::atomic<bool>[]> kept_;  // of each extent, see note_kept
};

/// Allocates storage for a range of a device now, so that a later store cannot meet a full file system.
/// On tmpfs it goes through the mapping, which allows huge pages; elsewhere through fallocate.
void reserve_range(const Mapping& device, std::uint64_t offset, std::uint64_t bytes);

}  // namespace beluga
