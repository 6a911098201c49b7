#include <array>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "payload_transfer.hpp"
#include "pool_core.hpp"
#include "small_pool.hpp"

using namespace beluga;
using namespace small_pool;

namespace {

constexpr std::size_t kSize = 20'000;

std::shared_ptr<PoolCore> attach(const std::string& directory, bool verify) {
  AttachOptions options;
  options.heartbeat_ms = 5;
  options.control_dir = directory;
  options.verify = verify;
  const std::string paths[] = {directory + "/pool"};
  return attach_pool(open_pool(paths, 1000), options);
}

std::vector<std::byte> payload() {
  std::mt19937_64 dice(1);
  std::vector<std::byte> bytes(kSize);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(dice());
  return bytes;
}

PutResult put(PoolCore& pool, std::string_view record, std::span<const std::byte> data) {
  PutResult result{};
  pool.put(key(record), {{data}}, {}, 0, {&result, 1});
  return result;
}

std::shared_ptr<Lease> lease(PoolCore& pool, std::string_view record) {
  std::vector<std::shared_ptr<Lease>> out;
  pool.lease(key(record), false, out);
  return out[0];
}

std::uint64_t counted(PoolCore& pool, Count what) {
  std::array<std::uint64_t, kCounts> sums{};
  pool.totals(sums);
  return sums[static_cast<std::size_t>(what)];
}

void flip(PoolCore& pool, PoolCore& other, std::string_view record, std::size_t at) {
  const auto held = lease(other, record);
  pool.address_of(*held)[at] ^= std::byte{16};
  other.release(held);
}

/// The checksum is that of what was stored, and covered by the descriptor's CRC.
void the_descriptor_carries_the_checksum(const std::string& directory) {
  format(directory + "/pool");
  const auto pool = attach(directory, true);
  const auto data = payload();
  CHECK(put(*pool, "key", data) == PutResult::stored);
  const auto held = lease(*pool, "key");
  CHECK(held);
  CHECK_EQ(held->checksum, payload_checksum(data));
  pool->release(held);
  pool->context().pool->hot(held->slot)->checksum ^= 1;
  CHECK(!lease(*pool, "key"));
  CHECK_EQ(counted(*pool, Count::checksum_failures), 0u);
  CHECK(counted(*pool, Count::garbage) >= 1);
}

void every_flipped_bit_is_a_miss(const std::string& directory) {
  format(directory + "/pool");
  const auto pool = attach(directory, true);
  const auto other = attach(directory, false);
  const auto data = payload();
  std::uint64_t failures = 0;
  for (const std::size_t at : {std::size_t{0}, std::size_t{63}, std::size_t{64}, std::size_t{9'999}, kSize - 1}) {
    CHECK(put(*pool, "key", data) == PutResult::stored);
    flip(*pool, *other, "key", at);
    if (at % 2) {
      CHECK(!lease(*pool, "key"));
    } else {
      std::vector<std::byte> buffer(kSize);
      const std::span<std::byte> target = buffer;
      std::int64_t copied = 0;
      pool->read_into(key("key"), {&target, 1}, {&copied, 1});
      CHECK_EQ(copied, -1);
    }
    CHECK_EQ(counted(*pool, Count::checksum_failures), ++failures);
  }
  // Nothing of it stays, once the heartbeat has seen that nobody leases it.
  while (pool->check().closing) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  CHECK_EQ(pool->occupancy().chunks, 0u);
  CHECK_EQ(pool->check().problems, 0u);
}

/// Bytes that change between reservation and commit are the writer's own; later ones are damage.
void a_commit_takes_what_lies_there(const std::string& directory) {
  format(directory + "/pool");
  const auto pool = attach(directory, true);
  const auto data = payload();
  Slot slot;
  CHECK(pool->reserve(kSize, slot) == Refusal::none);
  std::memcpy(slot.address, data.data(), kSize);
  slot.address[7] = std::byte{7};
  std::shared_ptr<Lease> held;
  CHECK(pool->commit(slot, key("key"), {}, kSize, 0, &held) == PutResult::stored);
  CHECK(held && pool->valid(*held));
  pool->release(held);
  CHECK(lease(*pool, "key"));
  slot.address[7] = std::byte{8};
  CHECK(!lease(*pool, "key"));
}

void what_has_no_checksum_is_counted(const std::string& directory) {
  format(directory + "/pool");
  const auto pool = attach(directory, true);
  const auto other = attach(directory, false);
  CHECK(put(*other, "key", payload()) == PutResult::stored);
  const auto held = lease(*pool, "key");
  CHECK(held);
  CHECK_EQ(held->checksum, 0u);
  CHECK_EQ(counted(*pool, Count::unverified), 1u);
}

void run(const std::string& directory) {
  the_descriptor_carries_the_checksum(directory);
  every_flipped_bit_is_a_miss(directory);
  a_commit_takes_what_lies_there(directory);
  what_has_no_checksum_is_counted(directory);
}

}  // namespace

int main() { return scratch::run(run); }
