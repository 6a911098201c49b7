#include <atomic>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <random>
#include <thread>
#include <vector>

#include "pool_core.hpp"
#include "small_pool.hpp"

using namespace beluga;
using namespace small_pool;

namespace {

AttachOptions options(const std::string& directory, std::uint32_t host = 0) {
  AttachOptions options;
  options.host_id = host;
  options.heartbeat_ms = 5;
  options.copy_threads = 2;
  options.control_dir = directory;
  return options;
}

std::shared_ptr<PoolCore> attach(const std::string& directory, std::uint32_t host = 0) {
  const std::string paths[] = {directory + "/pool"};
  return attach_pool(open_pool(paths, 1000), options(directory, host));
}

PutResult put(PoolCore& core, std::string_view record, std::span<const std::byte> data) {
  PutResult result{};
  core.put(key(record), {{data}}, {}, 0, {&result, 1});
  return result;
}

std::shared_ptr<Lease> lease(PoolCore& core, std::string_view record) {
  std::vector<std::shared_ptr<Lease>> out;
  core.lease(key(record), false, out);
  return out[0];
}

void check_clean(PoolCore& core) {
  const CheckReport report = core.check();
  for (const std::string& error : report.errors) std::fprintf(stderr, "%s\n", error.c_str());
  CHECK_EQ(report.problems, 0u);
  CHECK_EQ(report.writing, 0u);
  const Occupancy now = core.occupancy();
  CHECK_EQ(now.leased, 0u);
}

/// Every byte of a chunk of `key` tells the key, and the run in which it was stored.
std::vector<std::byte> chunk_of(std::uint32_t number, std::uint32_t version, std::size_t bytes) {
  std::vector<std::byte> data(bytes);
  const std::uint32_t stamp[2] = {number, version};
  for (std::size_t i = 0; i < bytes; ++i)
    data[i] = reinterpret_cast<const std::byte*>(stamp)[i % 8];
  return data;
}

bool is_chunk_of(std::uint32_t number, const std::byte* data, std::size_t bytes) {
  std::uint32_t stamp[2];
  std::memcpy(stamp, data, 8);
  if (stamp[0] != number) return false;
  for (std::size_t i = 0; i < bytes; ++i) {
    if (data[i] != reinterpret_cast<const std::byte*>(stamp)[i % 8]) return false;
  }
  return true;
}

/// Threads of three processes on two hosts do everything to one small pool for a while.
void everything_at_once(const std::string& directory) {
  // One mapping for all: ThreadSanitizer takes two mappings of a file for two memories.
  const auto pool = format(directory + "/pool", 2);
  std::vector<std::shared_ptr<PoolCore>> cores;
  for (const std::uint32_t host : {0u, 0u, 1u})
    cores.push_back(attach_pool(pool, options(directory, host)));
  constexpr std::uint32_t kKeys = 48;
  std::atomic<std::uint64_t> stored{0};
  std::atomic<std::uint64_t> read{0};
  const auto size_of = [](std::uint32_t number) { return std::size_t{500} + number % 3 * 3000; };
  const auto work = [&](PoolCore& core, std::uint32_t seed) {
    std::mt19937 random(seed);
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1000);
    std::vector<std::byte> buffer(16384);
    while (std::chrono::steady_clock::now() < end) {
      const auto number = static_cast<std::uint32_t>(random() % kKeys);
      const std::string record = "key " + std::to_string(number);
      const KeyBatch batch = key(record);
      switch (random() % 12) {
        case 0:
        case 1:
        case 2: {
          const auto data = chunk_of(number, static_cast<std::uint32_t>(random()), size_of(number));
          stored += put(core, record, data) == PutResult::stored;
          break;
        }
        case 3:
        case 4:
        case 5: {
          const auto held = lease(core, record);
          if (!held) break;
          CHECK_EQ(held->size, size_of(number));
          CHECK(is_chunk_of(number, core.address_of(*held), held->size));
          CHECK(core.valid(*held));
          core.release(held);
          ++read;
          break;
        }
        case 6: {
          std::span<std::byte> target(buffer);
          std::int64_t copied = 0;
          core.read_into(batch, {{target}}, {&copied, 1});
          if (copied < 0) break;
          CHECK_EQ(static_cast<std::size_t>(copied), size_of(number));
          CHECK(is_chunk_of(number, buffer.data(), static_cast<std::size_t>(copied)));
          break;
        }
        case 7: {
          Slot slot;
          if (core.reserve(size_of(number), slot) != Refusal::none) break;
          if (random() % 2) {
            core.abandon(slot);
            break;
          }
          const auto data = chunk_of(number, static_cast<std::uint32_t>(random()), size_of(number));
          std::memcpy(slot.address, data.data(), data.size());
          std::shared_ptr<Lease> held;
          if (core.commit(slot, batch, {}, data.size(), 0, &held) == PutResult::stored && held) {
            CHECK(std::memcmp(core.address_of(*held), data.data(), data.size()) == 0);
            CHECK(core.valid(*held));
            core.release(held);
          }
          break;
        }
        case 8:
          core.remove(batch.prints);
          break;
        case 9:
          core.evict(random() % 4 ? 1000 : 1 << 20);
          break;
        case 10:
          if (core.pin_prefix(batch) && random() % 8) core.unpin(batch.prints[0]);
          core.touch(batch.prints);
          break;
        default: {
          if (random() % 50 == 0) core.clear();
          std::uint32_t cursor = 0;
          for (const Entry& entry : core.list(cursor, 16))
            CHECK(entry.size >= 500 && entry.size <= 6500);
          core.contains_prefix(batch.prints);
          core.last_no_space();
        }
      }
    }
    core.unpin_all();
  };
  std::vector<std::thread> threads;
  for (std::uint32_t t = 0; t < 6; ++t)
    threads.emplace_back([&, t] { work(*cores[t % cores.size()], t + 1); });
  for (std::thread& thread : threads) thread.join();
  CHECK(stored > 0 && read > 0);
  // Chunks that were removed while leased go at the next heartbeats.
  while (cores[0]->occupancy().closing + cores[2]->occupancy().closing) {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  for (const auto& core : cores) check_clean(*core);
  for (const auto& core : cores) CHECK_EQ(core->pins(), 0u);
  cores.clear();
  for (const auto& file : std::filesystem::directory_iterator(directory)) {
    CHECK(file.path().extension() != ".ctl");  // the last process of each host takes it along
  }
  const auto later = attach(directory);
  check_clean(*later);
  CHECK(!later->closed());
}

/// Handles come and go under load.
void attaching_and_leaving(const std::string& directory) {
  format(directory + "/pool");
  const auto first = attach(directory);
  const auto data = chunk_of(1, 1, 2000);
  CHECK(put(*first, "key", data) == PutResult::stored);
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 15; ++i) {
        const auto core = attach(directory);
        const auto held = lease(*core, "key");
        CHECK(held && is_chunk_of(1, core->address_of(*held), held->size));
        Slot slot;
        CHECK(core->reserve(1000, slot) == Refusal::none);
        if (i % 3 == 0) core->abandon(slot);
        if (i % 3 == 1) core->commit(slot, key(std::to_string(100 * t + i)), {}, 1000, 0, nullptr);
        if (i % 2) core->close();
        if (i % 3 == 2) core->abandon(slot);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(lease(*first, "key"));
  first->close();
  const auto later = attach(directory);
  check_clean(*later);
}

void closed_from_another_thread(const std::string& directory) {
  format(directory + "/pool");
  for (int i = 0; i < 20; ++i) {
    const auto core = attach(directory);
    const auto data = chunk_of(1, 1, 3000);
    std::thread user([&] {
      try {
        for (;;) {
          put(*core, "key", data);
          if (const auto held = lease(*core, "key")) core->release(held);
          core->remove(key("key").prints);
        }
      } catch (const Error& error) {
        CHECK(error.kind == ErrorKind::pool_closed);
      }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    core->close();
    user.join();
  }
  check_clean(*attach(directory));
}

void run(const std::string& directory) {
  everything_at_once(directory);
  attaching_and_leaving(directory);
  closed_from_another_thread(directory);
}

}  // namespace

int main() { return scratch::run(run); }
