#include "payload_transfer.hpp"

#include <algorithm>

#include "fingerprint.hpp"

namespace beluga {
namespace {

constexpr std::size_t kPart = 1 << 20;

std::uint64_t combine(std::span<const std::uint64_t> sums) noexcept {
  const std::uint64_t whole = sums.size() == 1 ? sums[0] : checksum64(std::as_bytes(sums));
  return whole ? whole : 1;
}

}  // namespace

std::uint64_t payload_checksum(std::span<const std::byte> payload) {
  std::vector<std::uint64_t> sums;
  for (std::size_t at = 0; sums.empty() || at < payload.size(); at += kPart) {
    sums.push_back(checksum64(payload.subspan(at, std::min(kPart, payload.size() - at))));
  }
  return combine(sums);
}

void PayloadTransfer::add(void* dst, std::span<const std::byte> bytes) {
  const std::size_t step = with_checksums_ ? kPart : std::max<std::size_t>(bytes.size(), 1);
  for (std::size_t at = 0; at < bytes.size(); at += step) {
    parts_.push_back({dst ? static_cast<std::byte*>(dst) + at : nullptr, bytes.data() + at,
                      std::min(step, bytes.size() - at), nullptr});
  }
  first_.push_back(parts_.size());
}

void PayloadTransfer::run(CopyEngine& engine, CopyDirection direction) {
  if (with_checksums_) {
    sums_.resize(parts_.size());
    for (std::size_t i = 0; i < parts_.size(); ++i) parts_[i].sum = &sums_[i];
  }
  engine.copy_batch(parts_, direction);
}

std::uint64_t PayloadTransfer::checksum(std::size_t i) const noexcept {
  if (!with_checksums_) return 0;
  return combine(std::span(sums_).subspan(first_[i], first_[i + 1] - first_[i]));
}

}  // namespace beluga
