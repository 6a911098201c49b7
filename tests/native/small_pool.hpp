#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <string_view>

#include "cache_instructions.hpp"
#include "format.hpp"
#include "key_record.hpp"
#include "membership.hpp"
#include "pool_process.hpp"
#include "scratch.hpp"
#include "walk.hpp"

/// Small pools, and hosts on them that do nothing by themselves: no heartbeat, no scrub. Each test is built once for
/// either visibility policy.
#ifndef BELUGA_TEST_POLICY
#define BELUGA_TEST_POLICY Coherent
#endif

namespace small_pool {

using namespace beluga;

using Policy = BELUGA_TEST_POLICY;

constexpr std::uint64_t kExtent = 64 << 10;
constexpr std::uint64_t kChunk = 4000;  // 16 to an extent

inline std::shared_ptr<PoolMemory> format(const std::string& path, std::uint32_t max_hosts = 1,
                                          std::uint64_t size = 1 << 20) {
  FormatOptions options;
  options.max_hosts = max_hosts;
  options.visibility = Policy::mode;
  options.extent_size = kExtent;
  options.chunk_hint = 4096;
  const std::string paths[] = {path};
  ::unlink(path.c_str());
  format_pool(paths, size, options);
  return open_pool(paths, 1000);
}

inline KeyBatch keys(std::initializer_list<std::string_view> records) {
  KeyBatch batch;
  for (const std::string_view record : records) {
    batch.add(std::as_bytes(std::span(record.data(), record.size())));
  }
  return batch;
}
inline KeyBatch key(std::string_view record) { return keys({record}); }
inline Fingerprint print(std::string_view record) { return key(record).prints[0]; }

/// A process of a host: all protocols on one context. Only the first process of a host may
/// `recover`.
struct Process : PoolProcess<Policy> {
  Process(std::shared_ptr<PoolMemory> memory, const std::string& directory, std::uint32_t host = 0,
          std::uint32_t process = 1, bool recover = true, std::uint32_t dead_after_ms = 300)
      : PoolProcess(memory, control_block(directory + "/host" + std::to_string(host), *memory, recover),
                    options(host, dead_after_ms), process),
        pool(memory),
        walk(context, index, hosts, slots, extents) {
    if (recover) {
      context.control->reset(*memory, host);
      start_host(true, 0);
    }
    describe_process(context.control->process(process - 1));
    beat();
  }

  static std::shared_ptr<ControlBlock> control_block(const std::string& path,
                                                     const PoolMemory& pool, bool anew) {
    if (anew) ::unlink(path.c_str());
    return std::make_shared<ControlBlock>(path, pool, 0600);
  }

  static AttachOptions options(std::uint32_t host, std::uint32_t dead_after_ms) {
    AttachOptions options;
    options.host_id = host;
    options.lock_timeout_ms = 100;
    options.dead_after_ms = dead_after_ms;
    return options;
  }

  void beat() {
    HostHeartbeat& beat = pool->host(context.host)->heartbeat;
    Policy::store(&beat.incarnation, context.header().incarnation);
    Policy::store(&beat.tick, context.tick());
    Policy::store(&beat.active_hosts, ~std::uint64_t{0});  // no joiner has to wait for this host's next beat
    Policy::store(&context.header().last_beat, context.now_ms());
    hosts.refresh_active();
  }

  /// Stores a chunk of `size` bytes, all of them `fill`. Returns its slot.
  std::uint32_t put(std::string_view record, std::uint64_t size = kChunk, int fill = 1,
                    std::uint32_t depth = 0) {
    Slot slot;
    CHECK(eviction.allocate(size, slot) == Refusal::none);
    std::memset(slot.address, fill, size);
    write_descriptor(slot, record, size, depth);
    CHECK(index.insert(print(record), slot.number));
    publish_word<Policy>(Point::ready, pool->hot(slot.number), make_word(slot.generation, 0, SlotState::ready));
    slots.written(slot.number);
    return slot.number;
  }

  /// Everything of a descriptor but its word.
  void write_descriptor(const Slot& slot, std::string_view record, std::uint64_t size,
                        std::uint32_t depth = 0) {
    HotDescriptor hot{};
    hot.word = make_word(slot.generation, context.process, SlotState::writing);
    const Fingerprint f = print(record);
    hot.print_lo = f.lo;
    hot.print_hi = f.hi;
    hot.size = size;
    hot.offset = slot.offset;
    hot.record_bytes = static_cast<std::uint16_t>(record.size());
    hot.born = context.tick();
    hot.depth = depth;
    std::vector<std::byte> cold((record.size() + 7) / 8 * 8);
    std::memcpy(cold.data(), record.data(), record.size());
    hot.crc = descriptor_crc(slot.number, hot, {cold.data(), record.size()});
    store_words<Policy>(pool->cold(slot.number), cold.data(), cold.size());
    store_words<Policy>(reinterpret_cast<std::byte*>(pool->hot(slot.number)) + 8,
                          reinterpret_cast<const std::byte*>(&hot) + 8, sizeof(hot) - 8);
  }

  /// Held until leases.release().
  std::shared_ptr<Lease> lease(std::string_view record) {
    const KeyBatch batch = key(record);
    std::vector<std::shared_ptr<Lease>> out;
    leases.acquire(
        batch.prints, [&](std::size_t i) { return batch.record(i); }, false, out);
    return out[0];
  }

  const std::byte* payload(const Lease& lease) const {
    return pool->payload(pool->extent_of(lease.slot)) + lease.offset;
  }

  std::uint64_t word(std::uint32_t slot) const { return Policy::load(&pool->hot(slot)->word); }
  SlotState state(std::uint32_t slot) const { return state_of(word(slot)); }
  bool found(std::string_view record) const {
    return static_cast<bool>(index.find_one(print(record)));
  }
  bool evict(std::uint32_t slot) {
    const std::uint64_t seen = word(slot);
    return state_of(seen) == SlotState::ready && eviction.evict(slot, seen);
  }
  std::uint64_t counted(Count what) const { return context.counters().get(what); }

  void check_clean() {
    const CheckReport report = walk.check();
    for (const std::string& error : report.errors) std::fprintf(stderr, "%s\n", error.c_str());
    CHECK_EQ(report.problems, 0u);
  }

  std::shared_ptr<PoolMemory> pool;
  Walk<Policy> walk;
};

/// A record whose fingerprint falls into `bucket`; each `number` gives another.
inline std::string record_in_bucket(const PoolMemory& pool, std::uint64_t bucket, int number) {
  for (int i = number * 1'000'000;; ++i) {
    std::string record = "key " + std::to_string(i);
    if (pool.bucket_of(print(record).lo) == bucket) return record;
  }
}

}  // namespace small_pool
