#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>

#include "heartbeat.hpp"
#include "joining.hpp"
#include "pressure.hpp"
#include "publication.hpp"
#include "recovery.hpp"
#include "requests.hpp"
#include "upkeep.hpp"

namespace beluga {

/// One process's part in a pool: the protocols put together, without threads, files or file locks, so that the same
/// source runs in engines and in the simulator. Whoever owns one calls beat() at every heartbeat.
template <VisibilityPolicy V>
class PoolProcess {
 public:
  PoolProcess(std::shared_ptr<PoolMemory> memory, std::shared_ptr<ControlBlock> control, const AttachOptions& options,
              std::uint32_t process)
      : context(std::move(memory), std::move(control), options, process, &V::now_ms),
        index(context),
        hosts(context),
        leases(context, index, hosts),
        extents(context, hosts),
        slots(context, index, extents),
        eviction(context, index, hosts, slots),
        removal(context, index, slots, eviction),
        requests(context, hosts, slots, eviction, removal),
        publication(context, index, leases, slots, eviction),
        upkeep(context, index, hosts, leases, extents, slots, eviction),
        heartbeat(context, hosts),
        pressure(context, hosts, slots, eviction) {}
  PoolProcess(const PoolProcess&) = delete;
  PoolProcess& operator=(const PoolProcess&) = delete;

  /// What the first process of a host does before anybody else of it may start. The control block is empty.
  /// `certain`: see Joining. Throws host_in_use.
  void start_host(bool certain, std::uint64_t key_scheme) {
    Recovery<V> recovery(context, index, hosts, slots, extents);
    recovery.start_clock();
    const bool known = Joining<V>(context, hosts).take(certain, key_scheme);
    if (!known) requests.skip_all();
    recovery.run();
    recovery.forget_the_wait();
  }

  enum class Beat { fine, formatted, taken_over };

  /// One heartbeat, but for the burial of dead processes, which the caller finds. Anything but `fine` means that
  /// this process has to stop using the pool, for ever.
  Beat beat() {
    const std::uint64_t now = context.now_ms();
    if (!formatted_as_attached()) return Beat::formatted;
    if (V::on(Point::identity, Step::check) && !own_page()) return Beat::taken_over;
    const bool slow = beats_++ % kSlowBeats == 0;
    if (context.sb().max_hosts > 1 || slow) hosts.refresh_active();
    const bool shared = context.sb().max_hosts > 1;
    // Whoever has nothing to evict is helped at once, and asks for no more than that.
    if (shared && (slow || coldest_age_ms_ == 0)) coldest_age_ms_ = eviction.coldest_age_ms();
    const std::uint32_t demand = shared ? pressure.own_demand(now, coldest_age_ms_ == 0) : 0;
    const bool spoke = heartbeat.beat(now, demand, coldest_age_ms_);
    leases.renew();
    upkeep.retry_doomed();
    if (shared) requests.serve();
    if (shared && spoke) pressure.relieve();
    if (slow) {
      upkeep.scrub(kScrubBudget);
      if (beats_ % (10 * kSlowBeats) == 1) slots.retry_storage();
    }
    return Beat::fine;
  }
  /// May this process still change anything? One whose host beats in time has looked lately. One that is late may have
  /// stood still while the pool was formatted, or its host id given to another machine, and looks first.
  /// SYNC POINT: superblock, identity (with a forced format, and with Joining on another machine)
  Beat standing() const {
    if (!context.late()) return Beat::fine;
    if (!formatted_as_attached()) return Beat::formatted;
    if (V::on(Point::identity, Step::check) && whose_page<V>(context) == Page::foreign) return Beat::taken_over;
    return Beat::fine;
  }

  /// Was this beat one of the few that also look after rare things?
  bool slow_beat() const noexcept { return beats_ % kSlowBeats == 1; }

  /// The superblock still names the pool that was attached.
  /// SYNC POINT: superblock (with a forced format)
  bool formatted_as_attached() const {
    const Superblock* shared = context.pool->shared_superblock();
    V::observe(Point::superblock, shared, kLine);
    V::observe_fence(Point::superblock);
    return V::load(&shared->magic) == kMagic && V::load(&shared->epoch) == context.sb().epoch;
  }

  /// How long to wait for owners that read requests more slowly than they are made.
  std::uint32_t asking_patience_ms() const noexcept { return kAskBeats * context.options.heartbeat_ms; }

  /// Removes a key on every host; owners of copies elsewhere are asked, for at most `patience_ms` each, which is 0
  /// after one in vain. True if there was a copy, which is gone, or whose owner has been asked.
  bool remove(const Fingerprint& print, std::uint32_t& patience_ms) {
    bool found_any = removal.remove_own(print);
    std::vector<Found> copies;
    index.find_all(print, copies);
    for (const Found& copy : copies) {
      if (context.owns(copy.slot)) continue;
      const bool asked =
          requests.ask(Requests<V>::Operation::remove, copy.slot, generation_of(copy.word), patience_ms);
      if (!asked) patience_ms = 0;
      found_any |= asked;
    }
    return found_any;
  }

  /// Removes every chunk of this host, and asks the others to do the same.
  std::uint64_t clear() {
    const std::uint64_t removed = removal.remove_all_own();
    slots.release_empty();
    const std::uint64_t others = context.active_hosts() & ~(std::uint64_t{1} << context.host);
    if (others) requests.ask(Requests<V>::Operation::clear, 0, 0, asking_patience_ms());
    return removed;
  }

  /// Leaves the pool for good, as a host: empty lanes, no claims, a page that says so. False: chunks are still leased;
  /// call again after a heartbeat.
  bool retire() {
    removal.remove_all_own();
    upkeep.retry_doomed();
    slots.release_empty();
    for (std::uint32_t e = 0; e < context.sb().extents; ++e) {
      if (context.control->extent(e).owned) return false;
    }
    publish_identity<V>(context, HostState::retired, 0);
    return true;
  }

  HostContext context;
  Index<V> index;
  Hosts<V> hosts;
  Leases<V> leases;
  Extents<V> extents;
  Slots<V> slots;
  Eviction<V> eviction;
  Removal<V> removal;
  Requests<V> requests;
  Publication<V> publication;
  Upkeep<V> upkeep;
  Heartbeat<V> heartbeat;
  Pressure<V> pressure;

 private:
  /// False: another machine has this host id.
  bool own_page() {
    const Page page = whose_page<V>(context);
    damaged_beats_ = page == Page::damaged ? damaged_beats_ + 1 : 0;
    // Not at once: another machine may be writing it.
    if (damaged_beats_ == kDamagedBeats) {
      repair_identity<V>(context);
      damaged_beats_ = 0;
    }
    return page != Page::foreign;
  }

  static constexpr std::uint32_t kDamagedBeats = 3;
  static constexpr std::uint64_t kSlowBeats = 5;
  static constexpr std::uint32_t kAskBeats = 10;
  static constexpr std::uint32_t kScrubBudget = 512;

  std::uint32_t damaged_beats_ = 0;
  std::uint64_t beats_ = 0;
  std::uint32_t coldest_age_ms_ = 0;
};

}  // namespace beluga
