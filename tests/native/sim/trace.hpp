#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

namespace sim {

/// How far a run is.
struct Moment {
  std::uint64_t step = 0;
  std::uint64_t ns = 0;
};

enum class Did : std::uint8_t {
  load,
  store,
  nt_store,
  exchanged,
  not_exchanged,
  fetched,
  write_back,
  flush,
  load_back,
  store_fence,
  full_fence,
  drained,
  nt_drained,
  cleaned,
  flushed,
  answered,
  evicted,
  dropped,
  prefetched,
  arrived,
  lost,
  slept,
  woke,
  waits,
  locked,
  lock_owner_died,
  lock_timed_out,
  unlocked,
  started,
  finished,
  killed,
  paused,
  resumed,
  host_killed,
  host_booted,
  host_paused,
  host_resumed,
  dma_started,
  dma_wrote,
  dma_read,
  dma_done,
  switched_off,
  note,
  kCount
};

/// Where an address lies.
enum class Space : std::uint8_t { none, device, control, other };

/// Who answered a load.
enum class From : std::uint8_t { none, store_buffer, cache, stale_cache, device, memory };

struct Event {
  Did did = Did::note;
  Space space = Space::none;
  From from = From::none;
  std::uint8_t bytes = 0;
  std::uint16_t host = 0xffff;
  std::uint16_t fiber = 0xffff;  // 0xffff: the environment
  std::uint64_t at = 0;          // offset in the device or the host's control block
  std::uint64_t value = 0;
  std::uint64_t other = 0;  // what was there before; of a stale load: what the device has
};

/// The last events, all of them hashed, and printed as they happen if wanted.
class Trace {
 public:
  Trace(const Moment& moment, std::uint32_t keep, std::FILE* sink)
      : moment_(moment), sink_(sink), ring_(keep ? keep : 1) {}

  void record(const Event& event) {
    Recorded& slot = ring_[count_++ % ring_.size()];
    slot.event = event;
    slot.moment = moment_;
    ++done_[static_cast<std::size_t>(event.did)];
    stale_ += event.from == From::stale_cache ? 1 : 0;
    mix(static_cast<std::uint64_t>(event.did) | static_cast<std::uint64_t>(event.from) << 8 |
        static_cast<std::uint64_t>(event.host) << 16 |
        static_cast<std::uint64_t>(event.fiber) << 32 |
        static_cast<std::uint64_t>(event.bytes) << 48);
    mix(event.at ^ moment_.ns << 20);
    mix(event.value);
    if (sink_) print(sink_, slot);
  }
  void note(std::string text, std::uint16_t host, std::uint16_t fiber);

  /// The same for the same seed.
  std::uint64_t hash() const noexcept { return hash_; }
  std::uint64_t events() const noexcept { return count_; }
  std::uint64_t count(Did did) const noexcept { return done_[static_cast<std::size_t>(did)]; }
  /// Loads that a stale line answered.
  std::uint64_t stale_loads() const noexcept { return stale_; }

  void print_last(std::FILE* to) const;

  std::vector<std::string> fiber_names;
  std::function<std::string(std::uint64_t offset)> device_name;
  std::function<std::string(std::uint32_t host, std::uint64_t offset)> control_name;

 private:
  struct Recorded {
    Event event;
    Moment moment;
    std::string text;
  };
  void mix(std::uint64_t word) noexcept {
    hash_ = (hash_ ^ word) * 0x9fb21c651e98df25;
    hash_ ^= hash_ >> 32;
  }
  void print(std::FILE* to, const Recorded& recorded) const;
  std::string name_of(const Event& event) const;

  const Moment& moment_;
  std::FILE* sink_;
  std::vector<Recorded> ring_;
  std::uint64_t count_ = 0;
  std::array<std::uint64_t, static_cast<std::size_t>(Did::kCount)> done_{};
  std::uint64_t stale_ = 0;
  std::uint64_t hash_ = 0xcbf29ce484222325;
};

}  // namespace sim
