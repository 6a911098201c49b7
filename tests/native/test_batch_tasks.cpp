#include <poll.h>

#include <cstring>
#include <thread>

#include "batch_tasks.hpp"
#include "object_salt.hpp"
#include "small_pool.hpp"

using namespace beluga;
using namespace small_pool;

namespace {

constexpr std::size_t kKeys = 8;

std::shared_ptr<PoolCore> attach(const std::string& directory) {
  AttachOptions options;
  options.heartbeat_ms = 5;
  options.control_dir = directory;
  const std::string paths[] = {directory + "/pool"};
  return attach_pool(open_pool(paths, 1000), options);
}

std::string name(std::size_t i) { return "key " + std::to_string(i); }

KeyBatch batch(std::size_t first, std::size_t count) {
  KeyBatch keys;
  for (std::size_t i = first; i < first + count; ++i) {
    const std::string record = name(i);
    keys.add(std::as_bytes(std::span(record)));
  }
  return keys;
}

/// Memory of a batch: chunk i is filled with the byte 1 + i.
struct Memory {
  explicit Memory(std::size_t count, bool filled) : bytes(count * kChunk) {
    for (std::size_t i = 0; filled && i < count; ++i) std::memset(&bytes[i * kChunk], static_cast<int>(1 + i), kChunk);
  }
  std::span<std::byte> chunk(std::size_t i) { return std::span(bytes).subspan(i * kChunk, kChunk); }
  bool whole(std::size_t i, std::size_t value) {
    for (const std::byte byte : chunk(i)) {
      if (std::to_integer<std::size_t>(byte) != value) return false;
    }
    return true;
  }
  std::vector<std::byte> bytes;
};

void wait(int fd) {
  pollfd poll{fd, POLLIN, 0};
  CHECK_EQ(::poll(&poll, 1, 30'000), 1);
  std::uint64_t count = 0;
  CHECK(::read(fd, &count, sizeof count) == sizeof count);
}

StoreOutcome store(BatchTasks& tasks, Memory& memory, std::size_t count, const std::string& meta = "meta") {
  StoreBatch stored;
  stored.keys = batch(0, count);
  for (std::size_t i = 0; i < count; ++i) stored.sources.push_back(memory.chunk(i));
  stored.metas.assign(count, meta);
  const BatchTasks::Id id = tasks.submit_store(std::move(stored));
  wait(tasks.store_fd());
  auto ended = tasks.take_stores();
  CHECK_EQ(ended.size(), 1u);
  CHECK_EQ(ended[0].first, id);
  return std::move(ended[0].second);
}

BatchTasks::Id submit_load(BatchTasks& tasks, Memory& memory, std::size_t count, const std::string& meta = "meta") {
  LoadBatch loaded;
  loaded.keys = batch(0, count);
  for (std::size_t i = 0; i < count; ++i) loaded.buffers.push_back(memory.chunk(i));
  loaded.metas.assign(count, meta);
  return tasks.submit_load(std::move(loaded));
}

FindOutcome load(BatchTasks& tasks, Memory& memory, std::size_t count, const std::string& meta = "meta") {
  const BatchTasks::Id id = submit_load(tasks, memory, count, meta);
  wait(tasks.load_fd());
  auto outcome = tasks.take_load(id);
  CHECK(outcome);
  CHECK(!tasks.take_load(id));
  return std::move(*outcome);
}

void what_is_stored_is_found_and_loaded(const std::string& directory) {
  format(directory + "/pool");
  const auto pool = attach(directory);
  BatchTasks tasks(pool);
  Memory source(kKeys, true);
  Memory target(kKeys + 1, false);
  const StoreOutcome stored = store(tasks, source, kKeys);
  CHECK(stored.trouble.empty());
  CHECK(stored.results == std::vector(kKeys, PutResult::stored));
  CHECK(store(tasks, source, kKeys).results == std::vector(kKeys, PutResult::duplicate));

  std::vector<std::uint8_t> hits(kKeys, 1);
  hits.push_back(0);
  const BatchTasks::Id id = tasks.submit_lookup(batch(0, kKeys + 1));
  auto found = tasks.take_lookup(id);
  // At once, since it is short and flushes nothing.
  if (pool->context().sb().visibility == VisibilityMode::coherent) CHECK(found);
  wait(tasks.lookup_fd());
  if (!found) found = tasks.take_lookup(id);
  CHECK(found);
  CHECK(found->hits == hits);
  CHECK_EQ(pool->pins(), kKeys);
  pool->unpin_all();
  const BatchTasks::Id longer = tasks.submit_lookup(batch(0, 2'000));
  wait(tasks.lookup_fd());
  auto many = hits;
  many.resize(2'000);
  CHECK(tasks.take_lookup(longer)->hits == many);
  CHECK_EQ(pool->pins(), kKeys);

  CHECK(load(tasks, target, kKeys + 1).hits == hits);
  for (std::size_t i = 0; i < kKeys; ++i) CHECK(target.whole(i, 1 + i));
  CHECK(target.whole(kKeys, 0));
  Memory other(kKeys, false);
  CHECK(load(tasks, other, kKeys, "another layout").hits == std::vector<std::uint8_t>(kKeys, 0));
  CHECK(other.whole(0, 0));
  CHECK_EQ(tasks.pending(), 0u);
  pool->unpin_all();
}

/// Whatever waits or runs when it is closed ends; after close() no buffer changes.
void every_task_ends(const std::string& directory) {
  format(directory + "/pool");
  const auto pool = attach(directory);
  Memory source(kKeys, true);
  for (int round = 0; round < 10; ++round) {
    BatchTasks tasks(pool);
    store(tasks, source, kKeys);
    std::vector<Memory> targets(100, Memory(kKeys, false));
    std::vector<BatchTasks::Id> ids;
    for (Memory& target : targets) ids.push_back(submit_load(tasks, target, kKeys));
    std::thread lookups([&] {
      for (int i = 0; i < 50; ++i) tasks.submit_lookup(batch(0, kKeys));
    });
    tasks.close();
    const auto then = [&] {
      std::vector<std::vector<std::byte>> bytes;
      for (const Memory& target : targets) bytes.push_back(target.bytes);
      return bytes;
    };
    const auto before = then();
    lookups.join();
    for (std::size_t n = 0; n < ids.size(); ++n) {
      const auto outcome = tasks.take_load(ids[n]);
      CHECK(outcome);
      for (std::size_t i = 0; i < kKeys; ++i) CHECK(targets[n].whole(i, outcome->hits[i] ? 1 + i : 0));
    }
    CHECK(before == then());
    CHECK_EQ(tasks.pending(), 0u);
    pool->unpin_all();
  }
}

void a_closed_pool_is_a_miss(const std::string& directory) {
  format(directory + "/pool");
  const auto pool = attach(directory);
  BatchTasks tasks(pool);
  Memory memory(kKeys, true);
  store(tasks, memory, kKeys);
  pool->close();
  const FindOutcome loaded = load(tasks, memory, kKeys);
  CHECK(loaded.hits == std::vector<std::uint8_t>(kKeys, 0));
  CHECK(!loaded.trouble.empty());
  const StoreOutcome stored = store(tasks, memory, kKeys);
  CHECK(stored.results == std::vector(kKeys, PutResult::refused));
  CHECK(!stored.trouble.empty());
}

void the_salt_of_a_record() {
  const auto salt = [](std::initializer_list<int> bytes) -> std::optional<std::string> {
    std::vector<std::byte> record;
    for (const int byte : bytes) record.push_back(static_cast<std::byte>(byte));
    const auto found = object_salt(record);
    return found ? std::optional(std::string(*found)) : std::nullopt;
  };
  // (1, 3, "m", 16777472, 0, "me", b"h"), and with an empty salt
  CHECK(salt({0x97, 1, 3, 0xa1, 'm', 0xce, 1, 0, 1, 0, 0, 0xa2, 'm', 'e', 0xc4, 1, 'h'}) == "me");
  CHECK(salt({0x97, 1, 3, 0xa1, 'm', 0xce, 1, 0, 1, 0, 0, 0xa0, 0xc4, 1, 'h'}) == "");
  CHECK(salt({0x97, 1, 3, 0xd9, 1, 'm', 0xff, 0xd1, 0x80, 0, 0xd9, 1, 's', 0xc4, 1, 'h'}) == "s");
  // Other forms, other kinds, and what ends early.
  CHECK(!salt({0x97, 2, 3, 0xa1, 'm', 0, 0, 0xa0}));
  CHECK(!salt({0x97, 1, 2, 0xa1, 'm', 0, 0, 0xa0}));
  CHECK(!salt({0x98, 1, 3, 0xa1, 'm', 0, 0, 0xa0}));
  CHECK(!salt({0x97, 1, 3, 0xa1, 'm', 0, 0, 0xa5, 'x'}));
  CHECK(!salt({0x97, 1, 3, 0xdb, 0xff, 0xff, 0xff, 0xff, 'm'}));
  CHECK(!salt({0x97, 1, 3, 0xa1, 'm', 0xce, 1}));
  CHECK(!salt({}));
}

void run(const std::string& directory) {
  the_salt_of_a_record();
  what_is_stored_is_found_and_loaded(directory);
  every_task_ends(directory);
  a_closed_pool_is_a_miss(directory);
}

}  // namespace

int main() { return scratch::run(run); }
