#pragma once

#include <cstdint>

#include "removal.hpp"

namespace beluga {

/// Asking another host to take a chunk away. A descriptor has one writer, its owner; so whoever wants a chunk gone
/// writes {slot, generation, operation} into the ring in its own host page, and owners read the rings of all others
/// at each heartbeat, act on what is theirs, and acknowledge in their own pages.
///
/// Asynchronous: a dead owner acts when it comes back, if the ring has not moved on by then. To act twice on one
/// request is harmless, since its generation names one chunk.
template <class V>
class Requests {
 public:
  enum class Operation : std::uint32_t { remove = 1, clear = 2, evict = 3 };

  Requests(HostContext& context, Hosts<V>& hosts, Slots<V>& slots, Eviction<V>& eviction, Removal<V>& removal)
      : context_(context),
        pool_(*context.pool),
        hosts_(hosts),
        slots_(slots),
        eviction_(eviction),
        removal_(removal) {}

  /// Asks the owner of `slot`, or with `clear` every other host. False: the ring is full of requests that a live
  /// owner has not read within `patience_ms`, or will not read because it has fallen silent; or the slot lock cannot
  /// be had.
  bool ask(Operation operation, std::uint32_t slot, std::uint64_t generation, std::uint32_t patience_ms) {
    for (std::uint32_t waited = 0;; waited += kPollMs) {
      const Answer answer = try_to_ask(operation, slot, generation);
      if (answer != Answer::full) return answer == Answer::asked;
      if (waited >= patience_ms) return false;
      V::sleep_us(kPollMs * 1000);
    }
  }

  /// What was asked before this host took part is nothing to it.
  void skip_all() {
    for (std::uint32_t h = 0; h < context_.sb().max_hosts; ++h) {
      if (h != context_.host) V::observe(Point::request_head, &pool_.host(h)->ring_head, sizeof(std::uint64_t));
    }
    V::observe_fence(Point::request_head);
    HostPage& page = *pool_.host(context_.host);
    for (std::uint32_t h = 0; h < context_.sb().max_hosts; ++h) {
      V::store(&page.acknowledged[h], h == context_.host ? 0 : V::load(&pool_.host(h)->ring_head));
    }
    for (std::uint32_t h = 0; h < kMaxHosts; h += kLine / sizeof(std::uint64_t)) {
      V::write_back_soon(Point::acknowledge, &page.acknowledged[h]);
    }
  }

  /// Acts on what other hosts ask. Called at each heartbeat. Returns the chunks that went.
  std::uint64_t serve() {
    const std::uint64_t others = context_.active_hosts() & ~(std::uint64_t{1} << context_.host);
    if (others == 0) return 0;
    for (std::uint64_t rest = others; rest; rest &= rest - 1) {
      V::observe(Point::request_head, &pool_.host(lowest(rest))->ring_head, sizeof(std::uint64_t));
    }
    V::observe_fence(Point::request_head);
    std::uint64_t gone = 0;
    for (std::uint64_t rest = others; rest; rest &= rest - 1) gone += serve_host(lowest(rest));
    return gone;
  }

 private:
  static constexpr std::uint32_t kPollMs = 1;
  enum class Answer { asked, full, hopeless, busy };
  enum class Room { enough, none_yet, none };

  static std::uint32_t lowest(std::uint64_t hosts) { return static_cast<std::uint32_t>(__builtin_ctzll(hosts)); }

  Answer try_to_ask(Operation operation, std::uint32_t slot, std::uint64_t generation) {
    typename Slots<V>::Locked lock(slots_);
    if (!lock) return Answer::busy;
    HostPage& page = *pool_.host(context_.host);
    const std::uint64_t head = V::load(&page.ring_head);
    if (const Room room = room_for(head); room != Room::enough) {
      return room == Room::none_yet ? Answer::full : Answer::hopeless;
    }
    OwnerRequest& entry = page.ring[head % kRingEntries];
    V::store(&entry.generation, generation);
    V::store(&entry.slot, slot);
    V::store(&entry.operation, static_cast<std::uint32_t>(operation));
    // SYNC POINT: request, request_head (with serve on the owner): no owner may count an entry that it cannot see.
    V::confirm(Point::request, &entry, sizeof(entry));
    V::store(&page.ring_head, head + 1);
    V::write_back_soon(Point::request_head, &page.ring_head);
    return Answer::asked;
  }

  /// Has every live host read the entry that is to be overwritten?
  Room room_for(std::uint64_t head) {
    if (head < kRingEntries) return Room::enough;
    const std::uint64_t others = context_.active_hosts() & ~(std::uint64_t{1} << context_.host);
    // SYNC POINT: acknowledge (with serve_host)
    for (std::uint64_t rest = others; rest; rest &= rest - 1) {
      V::observe(Point::acknowledge, &pool_.host(lowest(rest))->acknowledged[context_.host], sizeof(std::uint64_t));
      hosts_.observe_clock(lowest(rest));
    }
    V::observe_fence(Point::acknowledge);
    Room room = Room::enough;
    for (std::uint64_t rest = others; rest; rest &= rest - 1) {
      const std::uint64_t read = V::load(&pool_.host(lowest(rest))->acknowledged[context_.host]);
      if (head - read < kRingEntries) continue;
      const typename Hosts<V>::Clock clock = hosts_.judge(lowest(rest));
      if (!clock.live) continue;
      room = Room::none_yet;
      // Requests are read at heartbeats, and it has missed one.
      if (clock.silent_ms > 2 * context_.options.heartbeat_ms) return Room::none;
    }
    return room;
  }

  std::uint64_t serve_host(std::uint32_t h) {
    const HostPage& page = *pool_.host(h);
    std::uint64_t* acknowledged = &pool_.host(context_.host)->acknowledged[h];
    const std::uint64_t head = V::load(&page.ring_head);
    const std::uint64_t read = V::load(acknowledged);
    if (head == read) return 0;
    // A cursor that is too old, or damaged, skips what has been overwritten.
    const std::uint64_t from = head - read <= kRingEntries ? read : head - std::min<std::uint64_t>(head, kRingEntries);
    for (std::uint64_t at = from; at != head; ++at) {
      V::observe(Point::request, &page.ring[at % kRingEntries], sizeof(OwnerRequest));
    }
    V::observe_fence(Point::request);
    std::uint64_t gone = 0;
    for (std::uint64_t at = from; at != head; ++at) {
      OwnerRequest entry;
      load_words<V>(&entry, &page.ring[at % kRingEntries], sizeof(entry));
      gone += act(entry);
    }
    V::exchange_if(acknowledged, read, head);
    V::write_back_soon(Point::acknowledge, acknowledged);
    return gone;
  }

  std::uint64_t act(const OwnerRequest& entry) {
    if (entry.operation == static_cast<std::uint32_t>(Operation::clear)) return removal_.remove_all_own();
    if (!context_.slot_in_range(entry.slot) || !context_.owns(entry.slot)) return 0;
    HotDescriptor hot;
    if (!read_hot<V>(pool_.hot(entry.slot), hot) || !is_state(hot.word)) return 0;
    if (generation_of(hot.word) != entry.generation || state_of(hot.word) != SlotState::ready) return 0;
    if (entry.operation == static_cast<std::uint32_t>(Operation::remove)) {
      return removal_.remove_slot(entry.slot, hot.word, print_of(hot));
    }
    if (entry.operation == static_cast<std::uint32_t>(Operation::evict)) return eviction_.evict(entry.slot, hot.word);
    return 0;
  }

  HostContext& context_;
  const PoolMemory& pool_;
  Hosts<V>& hosts_;
  Slots<V>& slots_;
  Eviction<V>& eviction_;
  Removal<V>& removal_;
};

}  // namespace beluga
