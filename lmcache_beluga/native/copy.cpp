#include "copy.hpp"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "copy_kernels.hpp"
#include "errors.hpp"
#include "fingerprint.hpp"
#include "fork_guard.hpp"
#include "signal_mask.hpp"

namespace beluga {
namespace {

constexpr std::size_t kLine = 64;
// What one thread takes at a time. A copy of one piece stays in the calling thread: waking another
// would take about as long as the copy.
constexpr std::size_t kPiece = 1 << 20;
constexpr int kMaxThreads = 64;
constexpr int kAutoThreads =
    4;  // one or two already fill a socket's memory channels on small machines

int usable_cpus() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return std::max(1, CPU_COUNT(&allowed));
  return static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
}

int checked_threads(int threads) {
  if (threads < 0 || threads > kMaxThreads) {
    throw Error(ErrorKind::invalid_argument, "copy_threads is " + std::to_string(threads) +
                                                 ": give 0 (automatic) to " +
                                                 std::to_string(kMaxThreads));
  }
  return threads > 0 ? threads : std::min(kAutoThreads, usable_cpus());
}

CopyKernel kernel_for(CopyDirection direction) noexcept {
  return direction == CopyDirection::from_pool ? from_pool_kernel() : to_pool_kernel();
}

void copy_part(CopyKernel kernel, CopyDirection direction, const CopyPart& part, std::size_t offset,
               std::size_t n) noexcept {
  if (n != 0 && part.dst != nullptr) {
    kernel(static_cast<std::byte*>(part.dst) + offset,
           static_cast<const std::byte*>(part.src) + offset, n);
  }
  if (part.sum != nullptr) {
    const bool arrived = part.dst != nullptr && direction != CopyDirection::to_pool;
    *part.sum = checksum64({static_cast<const std::byte*>(arrived ? part.dst : part.src), part.n});
  }
}

/// A stretch of a batch: `n` bytes from `offset` of part `part` on, running into the parts after
/// it.
struct Piece {
  std::size_t part;
  std::size_t offset;
  std::size_t n;
};

/// One copy that several threads share. Lives on the caller's stack; all but `parts` and `kernel`
/// is guarded by the crew's lock.
struct Job {
  std::span<const CopyPart> parts;
  CopyKernel kernel;
  CopyDirection direction;
  std::size_t part = 0;  // the next byte that nobody has taken
  std::size_t offset = 0;
  int helpers = 0;  // native threads that work on it
  bool listed = false;
  Job* next = nullptr;

  /// Takes about kPiece bytes. A piece that ends within a part ends at a line boundary of its dst,
  /// so that no two threads write one line.
  bool take(Piece& piece) {
    while (part < parts.size() && offset == parts[part].n) {
      ++part;
      offset = 0;
    }
    if (part == parts.size()) return false;
    piece = {part, offset, 0};
    while (part < parts.size()) {
      const std::size_t left = parts[part].n - offset;
      const std::size_t room = kPiece - piece.n;
      if (left > room && parts[part].sum != nullptr) {
        if (piece.n > 0) break;
        // Whole, however large it is.
      } else if (left > room) {
        const auto end = reinterpret_cast<std::uintptr_t>(parts[part].dst) + offset + room;
        // Always more than 0 bytes: a piece starts with room for far more than a line.
        const std::size_t past_line = std::min<std::size_t>(end % kLine, room);
        piece.n += room - past_line;
        offset += room - past_line;
        break;
      }
      piece.n += left;
      ++part;
      offset = 0;
      if (piece.n >= kPiece) break;
    }
    return true;
  }

  void copy(Piece piece) const noexcept {
    for (std::size_t i = piece.part; piece.n > 0 && i < parts.size(); ++i) {
      const std::size_t n = std::min(piece.n, parts[i].n - piece.offset);
      copy_part(kernel, direction, parts[i], piece.offset, n);
      piece.n -= n;
      piece.offset = 0;
    }
  }
};

}  // namespace

/// The native threads and the list of copies that they help with.
class CopyEngine::Crew {
 public:
  explicit Crew(int threads) : threads_(threads), fork_generation_(fork_generation()) {
    crew_.reserve(static_cast<std::size_t>(threads - 1));
  }

  ~Crew() {
    {
      const std::lock_guard guard(lock_);
      stop_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : crew_) thread.join();
  }

  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  [[nodiscard]] int threads() const noexcept { return threads_; }

  /// True in the child of a fork: the threads do not exist here, and the lock may be held for ever.
  [[nodiscard]] bool forked() const noexcept { return fork_generation() != fork_generation_; }

  void share(std::span<const CopyPart> parts, CopyKernel kernel, CopyDirection direction, std::size_t total) {
    Job job{.parts = parts, .kernel = kernel, .direction = direction};
    std::unique_lock guard(lock_);
    if (!started_) start();
    if (!crew_.empty()) {
      list(job);
      const std::size_t useful = std::min(crew_.size(), (total - 1) / kPiece);
      for (std::size_t i = 0; i < useful; ++i) work_.notify_one();
    }
    work_on(job, guard);
    done_.wait(guard, [&] { return job.helpers == 0; });
  }

 private:
  void start() {
    started_ = true;
    const WithoutProcessSignals masked;
    try {
      while (crew_.size() + 1 < static_cast<std::size_t>(threads_)) {
        crew_.emplace_back([this] { help(); });
        pthread_setname_np(crew_.back().native_handle(), "beluga-copy");
      }
    } catch (const std::system_error&) {
      // The system gives no more threads: those that there are, and the callers, do the work.
    }
  }

  void help() {
    std::unique_lock guard(lock_);
    while (true) {
      work_.wait(guard, [&] { return stop_ || jobs_ != nullptr; });
      if (stop_) return;
      Job& job = *jobs_;
      ++job.helpers;
      work_on(job, guard);
      if (--job.helpers == 0) done_.notify_all();  // under the lock: `job` may be gone after it
    }
  }

  /// Copies pieces until none is left to take. Called and left with the lock held.
  void work_on(Job& job, std::unique_lock<std::mutex>& guard) {
    Piece piece{};
    while (job.take(piece)) {
      guard.unlock();
      job.copy(piece);
      guard.lock();
    }
    unlist(job);
  }

  void list(Job& job) {
    job.listed = true;
    Job** end = &jobs_;
    while (*end != nullptr) end = &(*end)->next;
    *end = &job;
  }

  void unlist(Job& job) {
    if (!job.listed) return;
    job.listed = false;
    Job** at = &jobs_;
    while (*at != &job) at = &(*at)->next;
    *at = job.next;
  }

  const int threads_;
  const std::uint64_t fork_generation_;
  std::mutex lock_;
  std::condition_variable work_;  // a job was listed, or stop_
  std::condition_variable done_;  // a job lost its last helper
  std::vector<std::thread> crew_;
  Job* jobs_ = nullptr;  // those with bytes left to take, oldest first
  bool started_ = false;
  bool stop_ = false;
};

CopyEngine::CopyEngine(int threads) : crew_(std::make_unique<Crew>(checked_threads(threads))) {}

CopyEngine::~CopyEngine() {
  // In a forked child there is nobody to join, and destroying the thread objects would end the
  // process.
  if (crew_->forked()) static_cast<void>(crew_.release());
}

void CopyEngine::copy_to_pool(void* dst, const void* src, std::size_t n) noexcept {
  const CopyPart part{dst, src, n};
  copy_batch({&part, 1}, CopyDirection::to_pool);
}

void CopyEngine::copy_from_pool(void* dst, const void* src, std::size_t n) noexcept {
  const CopyPart part{dst, src, n};
  copy_batch({&part, 1}, CopyDirection::from_pool);
}

void CopyEngine::copy_batch(std::span<const CopyPart> parts, CopyDirection direction) noexcept {
  const CopyKernel kernel = kernel_for(direction);
  std::size_t total = 0;
  for (const CopyPart& part : parts) total += part.n;
  if (total <= kPiece || crew_->threads() == 1 || crew_->forked()) {
    for (const CopyPart& part : parts) copy_part(kernel, direction, part, 0, part.n);
    return;
  }
  crew_->share(parts, kernel, direction, total);
}

int CopyEngine::threads() const noexcept { return crew_->threads(); }

}  // namespace beluga
