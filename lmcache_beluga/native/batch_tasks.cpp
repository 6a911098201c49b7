#include "batch_tasks.hpp"

#include <exception>

#include "errors.hpp"

namespace beluga {

namespace {

// A store or load shares its copies among the threads of the copy engine. A second load thread finds the chunks of the
// next batch, and begins to copy them, while the last pieces of one before are on their way.
constexpr int kStoreThreads = 1;
constexpr int kLookupThreads = 1;
constexpr int kLoadThreads = 2;

// A lookup of 512 keys takes about 100 us in a coherent pool, and two threads that wake each other up as much, or
// several times that on a virtual machine with idle processors. Where every key costs a flush, it takes longer.
constexpr std::size_t kShortLookup = 1024;

std::vector<std::span<const std::byte>> spans_of(const std::vector<std::string>& texts) {
  std::vector<std::span<const std::byte>> spans;
  spans.reserve(texts.size());
  for (const std::string& text : texts) spans.push_back(std::as_bytes(std::span(text)));
  return spans;
}

}  // namespace

BatchTasks::BatchTasks(std::shared_ptr<PoolCore> pool)
    : pool_(std::move(pool)),
      stores_("beluga-store", kStoreThreads),
      lookups_("beluga-lookup", kLookupThreads),
      loads_("beluga-load", kLoadThreads) {}

BatchTasks::~BatchTasks() { close(); }

template <class Outcome, class Work>
BatchTasks::Id BatchTasks::submit(Kind<Outcome>& kind, Outcome undone, Work work, By by) {
  const Id id = last_.fetch_add(1, std::memory_order_relaxed) + 1;
  try {
    pool_->check_open();
  } catch (const Error& error) {
    // In a forked child there are no threads, and the descriptors are the parent's.
    if (error.kind == ErrorKind::forked_handle) throw;
    undone.trouble = error.what();
  }
  kind.begin();
  if (!undone.trouble.empty()) {
    kind.end(id, std::move(undone));
    return id;
  }
  // Shared, since a std::function must be copyable; only the lane ever calls it.
  auto state = std::make_shared<std::pair<Outcome, Work>>(std::move(undone), std::move(work));
  const TaskLane::Task task = [this, &kind, id, state](bool run) {
    auto& [outcome, todo] = *state;
    if (!run) outcome.trouble = "the pool was closed before it was done";
    try {
      if (run) todo(*pool_, outcome);
    } catch (const std::exception& error) {
      outcome.trouble = error.what();
    }
    kind.end(id, std::move(outcome));
  };
  if (!(by == By::caller ? kind.lane.run_here(task) : kind.lane.add(task))) {
    state->first.trouble = "it was closed, too many batches wait, or the system gives no threads";
    kind.end(id, std::move(state->first));
  }
  return id;
}

BatchTasks::Id BatchTasks::submit_store(StoreBatch batch) {
  StoreOutcome undone{std::vector(batch.keys.size(), PutResult::refused), {}};
  return submit(stores_, std::move(undone), [batch = std::move(batch)](PoolCore& pool, StoreOutcome& outcome) {
    pool.put(batch.keys, batch.sources, spans_of(batch.metas), batch.first_depth, outcome.results);
  });
}

BatchTasks::Id BatchTasks::submit_lookup(KeyBatch keys) {
  FindOutcome undone{std::vector<std::uint8_t>(keys.size()), {}};
  const bool brief = keys.size() <= kShortLookup && pool_->context().sb().visibility == VisibilityMode::coherent;
  return submit(
      lookups_, std::move(undone),
      [keys = std::move(keys)](PoolCore& pool, FindOutcome& outcome) { pool.pin_each(keys, outcome.hits); },
      brief ? By::caller : By::lane);
}

BatchTasks::Id BatchTasks::submit_load(LoadBatch batch) {
  FindOutcome undone{std::vector<std::uint8_t>(batch.keys.size()), {}};
  return submit(loads_, std::move(undone), [batch = std::move(batch)](PoolCore& pool, FindOutcome& outcome) {
    std::vector<std::int64_t> copied(batch.keys.size(), -1);
    pool.read_into(batch.keys, batch.buffers, copied, spans_of(batch.metas));
    for (std::size_t i = 0; i < copied.size(); ++i) outcome.hits[i] = copied[i] >= 0;
  });
}

std::vector<std::pair<BatchTasks::Id, StoreOutcome>> BatchTasks::take_stores() {
  std::map<Id, StoreOutcome> ended;
  {
    const std::lock_guard guard(stores_.lock);
    ended.swap(stores_.kept);
  }
  return {std::make_move_iterator(ended.begin()), std::make_move_iterator(ended.end())};
}

std::size_t BatchTasks::pending() const {
  return stores_.pending() + lookups_.pending() + loads_.pending();
}

void BatchTasks::close() noexcept {
  lookups_.lane.stop();
  loads_.lane.stop();
  stores_.lane.stop();
}

}  // namespace beluga
