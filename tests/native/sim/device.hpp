#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace sim {

inline constexpr std::uint32_t kLineBytes = 64;

/// The memory device: what has arrived there. Protocol code has pointers into a second view of it
/// that cannot be accessed, so that whatever reads or writes it past the simulated machine faults.
class Device {
 public:
  Device(std::uint64_t bytes, bool guarded);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  std::byte* base() const noexcept { return base_; }
  std::uint64_t bytes() const noexcept { return bytes_; }
  std::uint32_t lines() const noexcept { return static_cast<std::uint32_t>(bytes_ / kLineBytes); }

  bool contains(std::uintptr_t address) const noexcept {
    return address - reinterpret_cast<std::uintptr_t>(base_) < bytes_;
  }
  std::uint64_t offset(std::uintptr_t address) const noexcept {
    return address - reinterpret_cast<std::uintptr_t>(base_);
  }
  const std::byte* read(std::uint64_t offset) const noexcept { return content_ + offset; }
  const std::byte* line(std::uint32_t number) const noexcept {
    return content_ + std::uint64_t{number} * kLineBytes;
  }
  /// To be written within its page.
  std::byte* write(std::uint64_t offset) noexcept {
    written_[offset / kPage] = true;
    return content_ + offset;
  }

  /// Lets plain code read what lies here on the device: a superblock that never changes, say. Whole
  /// pages.
  void expose(std::uint64_t offset, std::uint64_t bytes);

 private:
  static constexpr std::uint64_t kPage = 4096;

  struct Mapping;
  static thread_local std::unique_ptr<Mapping> spare_;  // all zeros: the next device of its size

  std::uint64_t bytes_;
  std::unique_ptr<Mapping> mapping_;
  std::byte* base_;
  std::byte* content_;
  std::vector<bool> written_;  // by page
};

}  // namespace sim
