#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "event_fd.hpp"
#include "key_record.hpp"
#include "pool_core.hpp"
#include "task_lane.hpp"

namespace beluga {

/// Chunks to be stored. The sources stay the caller's, and valid until the task has ended.
struct StoreBatch {
  KeyBatch keys;
  std::vector<std::span<const std::byte>> sources;
  std::vector<std::string> metas;  // one for each key
  std::uint32_t first_depth = 0;
};

/// Chunks to be loaded. The buffers stay the caller's, and valid until the task has ended.
struct LoadBatch {
  KeyBatch keys;
  std::vector<std::span<std::byte>> buffers;
  std::vector<std::string> metas;  // what each buffer is laid out for: a chunk of another layout is a miss
};

struct StoreOutcome {
  std::vector<PutResult> results;  // refused, where `trouble` says why nothing was stored
  std::string trouble;
};

struct FindOutcome {
  std::vector<std::uint8_t> hits;  // by key: found and pinned, or loaded
  std::string trouble;
};

/// Batches of work on a pool, done by a few native threads: whoever submits them does not wait, and learns from an
/// event descriptor that some have ended. Stores, lookups and loads wait in lanes of their own, so that a lookup does
/// not wait for a copy. A short lookup of a coherent pool is done at once by whoever submits it: that takes less time
/// than to wake a thread up, and to be woken up by it.
///
/// A task that cannot be done ends as a miss, or as refused, with its trouble; it ends once in any case. Outcomes are
/// kept until they are taken; of those nobody takes, the oldest go.
class BatchTasks {
 public:
  using Id = std::uint64_t;
  static constexpr std::size_t kMostWaiting = 4096;
  static constexpr std::size_t kMostKept = 16384;

  explicit BatchTasks(std::shared_ptr<PoolCore> pool);
  ~BatchTasks();
  BatchTasks(const BatchTasks&) = delete;
  BatchTasks& operator=(const BatchTasks&) = delete;

  [[nodiscard]] int store_fd() const noexcept { return stores_.ended.fd(); }
  [[nodiscard]] int lookup_fd() const noexcept { return lookups_.ended.fd(); }
  [[nodiscard]] int load_fd() const noexcept { return loads_.ended.fd(); }

  Id submit_store(StoreBatch batch);
  /// Pins each key that is present: see PoolCore::pin_each().
  Id submit_lookup(KeyBatch keys);
  Id submit_load(LoadBatch batch);

  /// All stores that have ended since they were last taken.
  std::vector<std::pair<Id, StoreOutcome>> take_stores();
  /// The outcome, once; nothing if the task has not ended, or is not known (any more).
  std::optional<FindOutcome> take_lookup(Id id) { return lookups_.take(id); }
  std::optional<FindOutcome> take_load(Id id) { return loads_.take(id); }

  /// Tasks that have not ended.
  [[nodiscard]] std::size_t pending() const;
  /// Ends what waits as not done, and waits for what is being done: after it no thread touches the pool or a buffer of
  /// the caller's. Idempotent.
  void close() noexcept;

 private:
  /// One kind of task: who does it, what came of it, and who is told.
  template <class Outcome>
  struct Kind {
    Kind(const char* name, int threads) : lane(name, threads, kMostWaiting) {}

    void end(Id id, Outcome outcome) {
      {
        const std::lock_guard guard(lock);
        kept.emplace(id, std::move(outcome));
        if (kept.size() > kMostKept) kept.erase(kept.begin());
        --open;
      }
      ended.signal();
    }
    std::optional<Outcome> take(Id id) {
      const std::lock_guard guard(lock);
      const auto it = kept.find(id);
      if (it == kept.end()) return std::nullopt;
      std::optional<Outcome> outcome = std::move(it->second);
      kept.erase(it);
      return outcome;
    }

    void begin() {
      const std::lock_guard guard(lock);
      ++open;
    }
    std::size_t pending() const {
      const std::lock_guard guard(lock);
      return open;
    }

    EventFd ended;
    mutable std::mutex lock;
    std::map<Id, Outcome> kept;
    std::size_t open = 0;
    TaskLane lane;  // last: its threads use the others
  };

  enum class By { lane, caller };

  template <class Outcome, class Work>
  Id submit(Kind<Outcome>& kind, Outcome undone, Work work, By by = By::lane);

  const std::shared_ptr<PoolCore> pool_;
  std::atomic<Id> last_{0};
  Kind<StoreOutcome> stores_;
  Kind<FindOutcome> lookups_;
  Kind<FindOutcome> loads_;
};

}  // namespace beluga
