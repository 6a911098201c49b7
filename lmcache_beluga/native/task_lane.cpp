#include "task_lane.hpp"

#include <pthread.h>
#include <signal.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "fork_guard.hpp"

namespace beluga {

class TaskLane::Crew {
 public:
  Crew(const char* name, int threads, std::size_t capacity) : name_(name), wanted_(threads), capacity_(capacity) {
    threads_.reserve(static_cast<std::size_t>(threads));
  }

  /// True in the child of a fork: the threads do not exist here, and the lock may be held for ever.
  [[nodiscard]] bool forked() const noexcept { return fork_generation() != fork_generation_; }

  bool add(Task task) {
    {
      const std::lock_guard guard(lock_);
      if (stopping_ || waiting_.size() >= capacity_) return false;
      if (threads_.empty()) start();
      if (threads_.empty()) return false;
      waiting_.push_back(std::move(task));
    }
    wake_.notify_one();
    return true;
  }

  bool run_here(const Task& task) {
    {
      const std::lock_guard guard(lock_);
      if (stopping_) return false;
      ++guests_;
    }
    task(true);
    {
      const std::lock_guard guard(lock_);
      if (--guests_ == 0) left_.notify_all();
    }
    return true;
  }

  void stop() noexcept {
    std::deque<Task> dropped;
    {
      const std::lock_guard guard(lock_);
      stopping_ = true;
      dropped.swap(waiting_);
    }
    wake_.notify_all();
    for (const Task& task : dropped) task(false);
    {
      std::unique_lock guard(lock_);
      left_.wait(guard, [&] { return guests_ == 0; });
    }
    // One caller joins; others wait for it.
    const std::lock_guard guard(joining_);
    for (std::thread& thread : threads_) {
      if (thread.joinable()) thread.join();
    }
  }

 private:
  void start() {
    // Signals of the process belong to its own threads: Python's handlers run on the main one.
    sigset_t every;
    sigset_t before;
    sigfillset(&every);
    pthread_sigmask(SIG_SETMASK, &every, &before);
    try {
      while (threads_.size() < static_cast<std::size_t>(wanted_)) {
        threads_.emplace_back([this] { work(); });
        pthread_setname_np(threads_.back().native_handle(), name_);
      }
    } catch (const std::system_error&) {
      // The system gives no more threads: those that there are do the work.
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }

  void work() {
    std::unique_lock guard(lock_);
    while (true) {
      wake_.wait(guard, [&] { return stopping_ || !waiting_.empty(); });
      if (stopping_) return;
      {
        const Task task = std::move(waiting_.front());
        waiting_.pop_front();
        guard.unlock();
        task(true);
      }  // what it holds goes without the lock
      guard.lock();
    }
  }

  const char* const name_;
  const int wanted_;
  const std::size_t capacity_;
  const std::uint64_t fork_generation_ = beluga::fork_generation();
  std::mutex lock_;
  std::condition_variable wake_;  // a task was added, or stopping_
  std::deque<Task> waiting_;
  bool stopping_ = false;
  std::size_t guests_ = 0;        // threads in run_here()
  std::condition_variable left_;  // the last of them left
  std::mutex joining_;
  std::vector<std::thread> threads_;  // started under lock_, joined under joining_ once stopping_
};

TaskLane::TaskLane(const char* name, int threads, std::size_t capacity)
    : crew_(std::make_unique<Crew>(name, threads, capacity)) {}

TaskLane::~TaskLane() {
  // In a forked child there is nobody to join, and destroying the thread objects would end the process.
  if (crew_->forked()) {
    static_cast<void>(crew_.release());
  } else {
    crew_->stop();
  }
}

bool TaskLane::add(Task task) { return !crew_->forked() && crew_->add(std::move(task)); }

bool TaskLane::run_here(const Task& task) { return !crew_->forked() && crew_->run_here(task); }

void TaskLane::stop() noexcept {
  if (!crew_->forked()) crew_->stop();
}

}  // namespace beluga
