#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <queue>
#include <string>
#include <type_traits>
#include <vector>

#include "actors.hpp"
#include "config.hpp"
#include "dma.hpp"
#include "locks.hpp"
#include "robust_mutex.hpp"
#include "setting.hpp"

/// A simulator of memory that hosts do not keep coherent (CXL 2.0 behind a switch), for x86 hosts.
///
///   fiber (a thread)      fiber           fiber             host = one coherence domain
///      | Core                | Core          | Core         store buffer, flushes on their way, NT
///      buffers
///      +----------+----------+               |
///            Cache of host 0           Cache of host 1      whole 64-byte lines, clean (perhaps
///            stale) or dirty Fabric of host 0          Fabric of host 1     writes that have left
///            and have not arrived
///                     \                     /
///                      +----- Device ------+                nobody is told when it changes
///
/// A step is one instruction of a fiber, or one act of the environment. Which one is drawn from the
/// seed: the same seed and configuration give the same run. One OS thread runs a world; several
/// threads may each run one.
///
/// Schedules: uniformly random, or PCT (random priorities that drop at random steps). A fiber may
/// also stand still for a while just before a flush, a fence or a locked operation.
///
/// What a program may rely on, and all that it may rely on:
///
/// Core. Stores take effect in program order, late (store buffer with forwarding). CLWB and
/// CLFLUSHOPT come after
///   older stores to their line and are otherwise unordered, also with younger stores. SFENCE puts
///   all older stores, flushes and NT stores before all younger ones; a load does not wait for it.
///   MFENCE and locked operations wait until everything older is done. NT stores take effect in any
///   order and in parts, the rest of a line later; those to one line of one CPU stay in order with
///   other writes to it. `load_back`, a load whose value is not used, is answered at any time
///   before the next MFENCE or locked operation, or by the cache or the store buffer if the flush
///   before it was not fenced. No entry stays for longer than `store_lag_ns`. A sleep, a pause and
///   a death are context switches: they drain the core.
/// Cache. Coherent among the processes of a host. A store, CAS or DDIO write fetches its line (if
/// it is not there,
///   however stale), and makes it dirty. Dirty lines are written back whole: when CLWB or
///   CLFLUSHOPT takes effect, or at any time, also long after others have written the line, or
///   never. Clean lines stay for ever or go at any time; lines come in at any time (prefetch),
///   preferably those that were used lately, were just flushed here, or are about to change on
///   another host.
/// Fabric. An MFENCE after a flush means that the line has left the host, not that it has arrived.
/// Writes to one
///   line arrive in order, writes to different lines in any order, each within `fabric_lag_ns`. A
///   miss of the same host on the line makes them arrive first: this is what a load back proves.
///   With `payload_in_order`, the arrival of a payload write, or the answer to a read of a payload
///   line, proves that this host's payload writes that left before have arrived.
/// GPU. A write lands dirty in the host's cache (DDIO) or goes past it; a read takes what its own
/// host's cache has,
///   however stale, else the device's. It goes on when its process is killed.
/// Local memory. A host's control block (registered) goes through the store buffers, without a
/// cache. Any other
///   memory is the process's own: a store to it drains older stores and acts at once. Plain C++
///   accesses are not seen at all, and make no step; on device memory they fault.
/// Time. Instructions cost time, and when every fiber sleeps, time jumps. Each host's clock has its
/// own offset and
///   rate.
/// Death. A killed process stops between two instructions; which of the last buffered ones happened
/// is arbitrary.
///   Its fibers are dropped without unwinding and its memory is freed at the end of the world.
///   Robust locks pass on at once, its DMA goes on. A killed host loses an arbitrary part of its
///   dirty lines and writes in flight. A paused host keeps its dirty lines, and they may be written
///   back meanwhile or at the worst moment.
namespace sim {

enum class Outcome : std::uint8_t {
  finished,  // no fiber is left but daemons
  out_of_steps,
  stuck,  // fibers wait, and nothing will wake them
  failed  // World::fail was called, or a fiber threw
};

enum class Daemon : bool { no, yes };
enum class Clock : bool { runs, stops };

class World {
 public:
  World(const Config& config, std::uint64_t seed);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  /// The one that lives on this thread.
  static World& now() noexcept { return *current_; }
  static bool alive() noexcept { return current_ != nullptr; }

  // --- The cast.

  Host& add_host();
  Process& add_process(Host& host);
  /// A thread of the process. A daemon does not keep run() going. May also be called while the
  /// world runs, from fibers, timers and checkers.
  Fiber& spawn(Process& process, std::string name, std::function<void()> body,
               Daemon daemon = Daemon::no);
  /// Memory that the processes of a host share: their control block.
  void register_control(Host& host, void* memory, std::size_t bytes);

  std::vector<std::unique_ptr<Host>>& hosts() noexcept { return hosts_; }
  const std::vector<std::unique_ptr<Fiber>>& fibers() const noexcept { return fibers_; }

  // --- Running.

  Outcome run(std::uint64_t max_steps) { return run_until({}, max_steps); }
  /// Until `done` says so (asked after each step), also when no fiber is left but daemons.
  Outcome run_until(const std::function<bool()>& done, std::uint64_t max_steps);
  /// Called after each step; calls fail() when a promise is broken.
  void on_step(std::function<void(World&)> checker) { checkers_.push_back(std::move(checker)); }
  /// Called at a step (counted from the start), or after a simulated time. Not in any fiber.
  void at_step(std::uint64_t step, std::function<void()> action);
  void after_us(std::uint64_t us, std::function<void()> action);

  /// What is set up before is as of an earlier step.
  void begin_at(std::uint64_t step) noexcept {
    if (steps() < step) setting_.moment.step = step;
  }

  /// All that is buffered or in flight takes effect; caches stay. With `evict`, dirty lines are
  /// then written back too, in random order. For checks at rest.
  void settle(bool evict);

  /// Ends the run. The first call counts.
  void fail(std::string what);
  bool failed() const noexcept { return failed_; }
  const std::string& failure() const noexcept { return failure_; }
  /// A remark in the trace.
  void note(std::string text);
  void print_trace(std::FILE* to) const { setting_.trace.print_last(to); }
  std::uint64_t trace_hash() const noexcept { return setting_.trace.hash(); }
  Trace& trace() noexcept { return setting_.trace; }

  std::uint64_t steps() const noexcept { return setting_.moment.step; }
  std::uint64_t time_ns() const noexcept { return setting_.moment.ns; }
  const Config& config() const noexcept { return setting_.config; }
  std::uint64_t seed() const noexcept { return seed_; }
  /// For scenarios: what they leave to chance.
  Rng& random() noexcept { return scenario_rng_; }
  /// The fiber that runs; null outside.
  Fiber* running() const noexcept { return running_; }

  // --- Faults. From timers, checkers, or fibers (also on themselves).

  void kill_process(Process& process);
  /// The process's exit can be seen from outside: killed or finished, and its GPU is quiet.
  bool gone(const Process& process) const noexcept;
  void pause_process(Process& process);
  void resume_process(Process& process);
  void kill_host(Host& host);
  /// After kill_host: with empty caches, another clock offset, and no processes.
  void boot_host(Host& host);
  /// SIGSTOP of all its processes (the clock runs), or a paused virtual machine (it may stand
  /// still).
  void pause_host(Host& host, Clock clock);
  void resume_host(Host& host);

  // --- The device.

  std::byte* base() const noexcept { return setting_.device.base(); }
  Device& device_memory() noexcept { return setting_.device; }
  std::uint64_t offset(const void* p) const noexcept {
    return setting_.device.offset(reinterpret_cast<std::uintptr_t>(p));
  }
  /// Watches writes of [offset, offset + bytes). The callback runs where the write happens: it must
  /// not act.
  void watch(std::uint64_t offset, std::uint64_t bytes, Watches::Callback callback) {
    setting_.watches.add(offset, bytes, std::move(callback));
  }
  /// What lies on the device.
  template <class T>
  T device(const T* p) const noexcept {
    T value;
    std::memcpy(&value, setting_.device.read(offset(p)), sizeof(T));
    return value;
  }
  /// What a host's caches, fabric and store buffers together make of it. T within one line.
  template <class T>
  T truth(Host& host, const T* p) const {
    T value;
    peek(host, offset(p), &value, sizeof(T));
    return value;
  }

  // --- What fibers do besides the protocol's instructions. Payload: one step per line.

  void nt_store(void* to, const void* from, std::size_t bytes);
  void cached_store(void* to, const void* from, std::size_t bytes);
  void read(void* to, const void* from, std::size_t bytes);
  /// A copy by this process's GPU between its memory and the device; both wait until it is done.
  void dma_write(void* to, const void* from, std::size_t bytes);
  void dma_read(void* to, const void* from, std::size_t bytes);
  /// Gives the others a turn.
  void yield();

  // --- The instructions: see Machine.

  std::uint64_t load(const void* p, std::uint32_t bytes);
  void store(void* p, std::uint32_t bytes, std::uint64_t value);
  bool exchange_if(void* p, std::uint32_t bytes, std::uint64_t expected, std::uint64_t desired);
  /// value = value & keep | set; returns what it was.
  std::uint64_t fetch(void* p, std::uint32_t bytes, std::uint64_t keep, std::uint64_t set);
  void write_back(const void* p);
  void flush(const void* p);
  void load_back(const void* p);
  void store_fence();
  void full_fence();
  void prefetch(const void* p);
  std::uint64_t now_ms() const noexcept;
  std::uint64_t now_ms(const Host& host) const noexcept;
  void sleep_us(std::uint64_t us);
  beluga::LockResult lock(const void* mutex, std::uint32_t timeout_ms);
  void unlock(const void* mutex);
  /// Who holds a robust mutex; null: nobody.
  const Fiber* holder(const void* mutex) const;
  /// Forgets robust mutexes that are made anew in this memory.
  void forget_locks(const void* memory, std::size_t bytes);
  /// Whose clock now_ms() is outside of fibers.
  void act_as(const Host& host) noexcept { acting_ = &host; }

 private:
  friend class Mutex;

  struct Sleep {
    std::uint64_t ns;
    std::uint64_t order;
    Fiber* fiber;
    std::uint64_t sleep;
    bool operator>(const Sleep& other) const noexcept {
      return ns != other.ns ? ns > other.ns : order > other.order;
    }
  };
  struct Timer {
    std::uint64_t when;
    std::uint64_t order;
    std::shared_ptr<std::function<void()>> action;
    bool operator>(const Timer& other) const noexcept {
      return when != other.when ? when > other.when : order > other.order;
    }
  };
  template <class T>
  using Queue = std::priority_queue<T, std::vector<T>, std::greater<T>>;

  // Scheduling.
  Fiber* choose();
  void resume(Fiber& fiber);
  void switch_out();
  void list(Fiber& fiber);
  void unlist(Fiber& fiber);
  void ready(Fiber& fiber);
  bool can_run(const Fiber& fiber) const noexcept;
  void sleep_until(Fiber& fiber, std::uint64_t ns);
  void wait_for(const void* what, std::uint64_t until_ns);
  void wake_waiters(const void* what);
  void wake_sleepers();
  bool pass_time();
  void drop(Fiber& fiber);
  void leave_if_dropped();
  void check_step();

  // The environment.
  bool environment_acts();
  bool prefetch_something(Host& host);
  bool dma_goes_on();
  void age();
  void mark_busy(Fiber& fiber);
  void catch_up();

  void instruction() {
    if (running_) switch_out();
  }
  void synchronising_instruction();
  void stop_core(Fiber& fiber);
  Place place_of(const void* p);
  void record(Did did, const Place& place, std::uint32_t bytes = 0, std::uint64_t value = 0,
              std::uint64_t other = 0, From from = From::none);
  void record_host(Did did, const Host& host);
  void touched(const Place& place) {
    if (place.space == Space::device)
      recent_[recent_count_++ % kRecent] = HostMemory::line_of(place.offset);
  }
  std::uint64_t read_place(const Place& place, std::uint32_t bytes, From& from,
                           std::uint64_t& on_device);
  void write_place(const Place& place, std::uint32_t bytes, std::uint64_t value);
  void tell(Seen::Stage stage, const Place& place, std::uint32_t bytes, std::uint64_t value,
            std::uint64_t before);
  void peek(Host& host, std::uint64_t offset, void* out, std::size_t bytes) const;
  void transfer(bool write, std::uint64_t offset, void* memory, const void* source,
                std::size_t bytes);

  static constexpr std::uint32_t kRecent = 64;
  // What a line of a DMA may take although nobody else does anything.
  static constexpr std::uint64_t kLongestDmaNs = 500'000'000;
  static thread_local constinit World* current_;

  Setting setting_;
  const std::uint64_t seed_;
  Rng scenario_rng_;
  std::vector<std::unique_ptr<Host>> hosts_;
  std::vector<std::unique_ptr<Process>> processes_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> runnable_;
  std::vector<Fiber*> busy_;
  std::vector<std::unique_ptr<Dma>> dmas_;  // under way
  RobustLocks locks_;
  Queue<Sleep> sleeps_;
  Queue<Timer> timers_;
  Queue<Timer> steps_due_;
  std::vector<std::function<void(World&)>> checkers_;
  std::vector<std::uint64_t> changes_;  // steps at which a priority drops, last first
  std::uint64_t horizon_ = 0;           // the step at which new ones are drawn
  std::uint64_t lowest_ = 1'000'000;
  Fiber* last_run_ = nullptr;
  std::uint32_t in_a_row_ = 0;
  Fiber* running_ = nullptr;
  const Host* acting_ = nullptr;
  std::uint32_t unfinished_ = 0;  // fibers that are no daemons
  std::uint64_t order_ = 0;
  std::uint64_t serial_ = 0;
  std::uint32_t recent_[kRecent] = {};
  std::uint64_t recent_count_ = 0;
  std::uint32_t turn_ = 0;
  bool failed_ = false;
  std::string failure_;
};

/// While it lives, the running fiber must not take a robust lock: readers never lock (G7).
class NoLocks {
 public:
  NoLocks() noexcept : fiber_(World::now().running()) {
    if (fiber_) ++fiber_->locks_forbidden;
  }
  ~NoLocks() {
    if (fiber_) --fiber_->locks_forbidden;
  }
  NoLocks(const NoLocks&) = delete;
  NoLocks& operator=(const NoLocks&) = delete;

 private:
  Fiber* fiber_;
};

}  // namespace sim
