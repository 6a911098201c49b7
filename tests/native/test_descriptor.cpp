#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>
#include <vector>

#include "small_pool.hpp"

using namespace beluga;
using namespace small_pool;

namespace {

ReadResult read(const Process& p, std::uint32_t slot, std::vector<std::byte>& cold) {
  HotDescriptor hot{};
  CHECK(read_hot<Policy>(p.pool->hot(slot), hot));
  return read_cold<Policy>(*p.pool, slot, hot, cold);
}

void a_descriptor_reads_back(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const std::uint32_t slot = p.put("a key of some length", 1234);
  std::vector<std::byte> cold;
  CHECK(read(p, slot, cold) == ReadResult::ok);
  CHECK(std::memcmp(cold.data(), "a key of some length", 20) == 0);
}

/// The CRC covers every bit that says what the chunk is.
void every_flipped_bit_is_garbage(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const std::uint32_t slot = p.put("key of 15 bytes", 1234);
  auto* hot = reinterpret_cast<std::uint8_t*>(p.pool->hot(slot));
  auto* record = reinterpret_cast<std::uint8_t*>(p.pool->cold(slot));
  std::vector<std::byte> cold;
  const auto flip = [&](std::uint8_t* bytes, std::size_t bit) {
    bytes[bit / 8] ^= static_cast<std::uint8_t>(1 << bit % 8);
  };
  for (std::size_t bit = 16; bit < 64 * 8; ++bit) {  // the first 16 are state and process
    flip(hot, bit);
    CHECK(read(p, slot, cold) == ReadResult::garbage);
    flip(hot, bit);
  }
  for (std::size_t bit = 0; bit < 15 * 8; ++bit) {
    flip(record, bit);
    CHECK(read(p, slot, cold) == ReadResult::garbage);
    flip(record, bit);
  }
  CHECK(read(p, slot, cold) == ReadResult::ok);
}

void a_record_elsewhere_or_of_an_earlier_chunk_is_garbage(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const std::uint32_t one = p.put("one");
  const std::uint32_t two = p.put("two");
  std::memcpy(p.pool->hot(two), p.pool->hot(one), kLine);
  std::memcpy(p.pool->cold(two), p.pool->cold(one), p.pool->sb().record_bytes);
  std::vector<std::byte> cold;
  CHECK(read(p, one, cold) == ReadResult::ok);
  CHECK(read(p, two, cold) == ReadResult::garbage);
  // The same slot, a generation later.
  HotDescriptor hot{};
  CHECK(read_hot<Policy>(p.pool->hot(one), hot));
  const std::uint64_t next = make_word(generation_of(hot.word) + 1, 0, SlotState::ready);
  publish_word<Policy>(Point::ready, p.pool->hot(one), next);
  CHECK(read(p, one, cold) == ReadResult::garbage);
}

void numbers_that_lead_outside_do_not_fit(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const std::uint32_t slot = p.put("key");
  HotDescriptor good{};
  CHECK(read_hot<Policy>(p.pool->hot(slot), good));
  const Superblock& sb = p.pool->sb();
  CHECK(fits(sb, good));
  const auto with = [&](auto change) {
    HotDescriptor hot = good;
    change(hot);
    return fits(sb, hot);
  };
  CHECK(!with([](HotDescriptor& h) { h.size = 0; }));
  CHECK(!with([&](HotDescriptor& h) { h.size = sb.extent_size + 1; }));
  CHECK(!with([](HotDescriptor& h) { h.size = ~std::uint64_t{0}; }));
  CHECK(!with([&](HotDescriptor& h) { h.offset = sb.extent_size - h.size + 64; }));
  CHECK(!with([](HotDescriptor& h) { h.offset = ~std::uint64_t{63}; }));
  CHECK(!with([](HotDescriptor& h) { h.offset = 1; }));
  CHECK(!with([](HotDescriptor& h) { h.record_bytes = 0; }));
  CHECK(!with(
      [&](HotDescriptor& h) { h.record_bytes = static_cast<std::uint16_t>(sb.record_bytes + 1); }));
  CHECK(!with([](HotDescriptor& h) { h.meta_bytes = 0xffff; }));
  CHECK(with([&](HotDescriptor& h) {
    h.meta_bytes = static_cast<std::uint16_t>(sb.record_bytes - h.record_bytes);
  }));
}

/// While a writer goes through generations, a reader sees all of one or gives up: never a mixture.
void a_reader_never_sees_two_generations(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  const std::uint32_t slot = p.put("key");
  HotDescriptor* line = p.pool->hot(slot);
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (std::uint64_t g = 1; !stop; ++g) {
      publish_word<Policy>(Point::ready, line, make_word(g, 1, SlotState::writing));
      Policy::store(&line->size, g);
      Policy::store(&line->offset, g * 64);
      Policy::store(&line->checksum, ~g);
      publish_word<Policy>(Point::ready, line, make_word(g, 0, SlotState::ready));
    }
  });
  std::uint64_t whole = 0;
  std::uint64_t unstable = 0;
  const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(300);
  while (std::chrono::steady_clock::now() < end) {
    HotDescriptor hot{};
    if (!read_hot<Policy>(line, hot)) {
      ++unstable;
    } else if (state_of(hot.word) == SlotState::ready && generation_of(hot.word) != 0) {
      const std::uint64_t g = generation_of(hot.word);
      CHECK_EQ(hot.size, g);
      CHECK_EQ(hot.offset, g * 64);
      CHECK_EQ(hot.checksum, ~g);
      ++whole;
    }
  }
  stop = true;
  writer.join();
  CHECK(whole + unstable > 0);
}

void run(const std::string& directory) {
  a_descriptor_reads_back(directory);
  every_flipped_bit_is_garbage(directory);
  a_record_elsewhere_or_of_an_earlier_chunk_is_garbage(directory);
  numbers_that_lead_outside_do_not_fit(directory);
  a_reader_never_sees_two_generations(directory);
}

}  // namespace

int main() { return scratch::run(run); }
