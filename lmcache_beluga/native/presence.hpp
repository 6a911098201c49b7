#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

#include <pthread.h>
#include <unistd.h>

#include "closure.hpp"
#include "membership.hpp"
#include "pool_process.hpp"

namespace beluga {

/// A process's life in its host: how it enters, the heartbeat that keeps it there, the burial of those that have died,
/// and how it leaves.
template <VisibilityPolicy V>
class Presence {
 public:
  Presence(Membership member, PoolProcess<V>& process, Closure& closure)
      : member_(std::move(member)), self_(process), context_(process.context), closure_(closure) {}
  Presence(const Presence&) = delete;
  Presence& operator=(const Presence&) = delete;

  /// Joins the host; the first process recovers it. Throws host_in_use.
  void enter(std::uint64_t key_scheme) {
    if (member_.first) {
      self_.start_host(host_id_is_certain(), key_scheme);
    } else {
      self_.hosts.refresh_active();
      // The processes before this one may not have known how prompts are hashed (a command-line tool, say).
      if (key_scheme && V::load(&context_.pool->host(context_.host)->identity.key_scheme) == 0) {
        publish_identity<V>(context_, HostState::member, key_scheme);
      }
      // Also an orderly process may have left a closed chunk that others lease.
      bury(context_.process - 1, self_.slots.patience());
    }
    describe_process(context_.control->process(context_.process - 1));
  }

  /// Beats from now on, and does `also` each time; the first time before others may enter.
  void start(std::function<void()> also) {
    also_ = std::move(also);
    beat();
    member_.initialising.release();
    heartbeat_ = std::thread([this] { run(); });
  }

  /// Ends the heartbeat. False: somebody else has ended it.
  bool stop() {
    {
      const std::lock_guard guard(mutex_);
      if (std::exchange(stopping_, true)) return false;
    }
    closure_.shut(Closure::kClosed);
    wake_.notify_all();
    if (heartbeat_.joinable()) heartbeat_.join();
    return true;
  }

  /// Leaves the host: nothing of this process remains. The last one takes the control block along.
  void leave() noexcept {
    if (!member_.alive.held()) return;
    try {
      const bool whole = !context_.pool->faulted() && !context_.control->faulted() &&
                         self_.formatted_as_attached() && identity_is_ours<V>(context_);
      if (whole) self_.leases.drop_all();
      const int fd = context_.control->fd();
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
      const auto lock = RangeLock::take(fd, kInitLockByte, LockMode::exclusive, deadline);
      if (lock && whole) bury(context_.process - 1, self_.slots.patience());
      const bool last = lock && alone();
      if (last && whole) self_.heartbeat.leave();
      if (last && context_.control->linked()) unlink(context_.control->path().c_str());
      member_.alive.release();
      member_.attached.release();
    } catch (const std::exception&) {
      part();
    }
  }

  /// Leaves everything as it is: the next process sweeps it once this one has ended.
  void part() noexcept {
    parted_.store(true, std::memory_order_release);
    member_.alive.release();
    member_.attached.release();
  }
  /// Was anything left behind, which is not this process's to give back any more?
  bool parted() const noexcept { return parted_.load(std::memory_order_acquire); }

  /// Has no other process of the host a living owner?
  bool alone() const {
    for (std::uint32_t p = 0; p < kMaxProcesses; ++p) {
      if (p + 1 != context_.process && held_by_other(context_.control->fd(), kProcessLockByte + p)) return false;
    }
    return true;
  }

  /// Closes the pool for good when it is no longer what was attached, or this host no longer who it was.
  bool stands(typename PoolProcess<V>::Beat found) const {
    switch (found) {
      case PoolProcess<V>::Beat::formatted:
        closure_.shut(Closure::kFormatted);
        return false;
      case PoolProcess<V>::Beat::taken_over:
        closure_.shut(Closure::kTakenOver);
        return false;
      case PoolProcess<V>::Beat::fine:
        return true;
    }
    return false;
  }

  /// Of all processes of the host that are here, or have been since its first one.
  void totals(std::span<std::uint64_t, kCounts> out) const {
    for (std::size_t c = 0; c < kCounts; ++c) {
      const auto what = static_cast<Count>(c);
      out[c] = context_.header().departed.get(what);
      for (std::uint32_t p = 0; p < kMaxProcesses; ++p) out[c] += context_.control->process(p).counters.get(what);
    }
  }

 private:
  void run() {
    pthread_setname_np(pthread_self(), "beluga-beat");
    std::unique_lock lock(mutex_);
    while (!stopping_) {
      wake_.wait_for(lock, std::chrono::milliseconds(context_.options.heartbeat_ms));
      if (stopping_) break;
      lock.unlock();
      try {
        beat();
      } catch (const std::exception&) {
        context_.count(Count::garbage);  // a full disk while sweeping: tried again at the next beat
      }
      lock.lock();
    }
  }

  void beat() {
    if (closure_.is_shut()) return;
    if (context_.pool->faulted() || context_.control->faulted() || context_.pool->truncated()) {
      closure_.shut(Closure::kTruncated);
      return;
    }
    if (!stands(self_.beat())) return;
    also_();
    if (self_.slow_beat()) {
      sweep_dead();
      publish_counters();
    }
  }

  /// Can nobody but this machine's processes that share this /dev/shm have the host id?
  bool host_id_is_certain() const {
    if (!context_.pool->shared_between_machines()) return true;
    // A coherent pool in a plain file is one machine's.
    const bool device = context_.pool->devices()[0]->file().kind() == DeviceKind::devdax;
    if (V::mode == VisibilityMode::coherent && !device && !context_.options.takeover) return true;
    return member_.former_nonce != 0 &&
           observe_identity<V>(*context_.pool, context_.host).nonce == member_.former_nonce;
  }

  void publish_counters() {
    HostPage& page = *context_.pool->host(context_.host);
    std::array<std::uint64_t, kCounts> sums{};
    totals(sums);
    store_words<V>(page.counters, sums.data(), sizeof(sums));
    V::publish(Point::statistics, page.counters, sizeof(sums));
    std::uint32_t alive = 0;
    for (std::uint32_t p = 0; p < kMaxProcesses; ++p) alive += V::load(&context_.control->process(p).state) != 0;
    V::store(&page.heartbeat.processes, alive);
    V::publish(Point::statistics, &page.heartbeat, kLine);
  }

  /// Any living process buries the dead ones of its host.
  void sweep_dead() {
    for (std::uint32_t p = 0; p < kMaxProcesses; ++p) {
      if (p + 1 == context_.process) continue;
      ProcessEntry& entry = context_.control->process(p);
      if (V::load(&entry.state) == 0) continue;
      const auto lock = RangeLock::try_take(context_.control->fd(), kProcessLockByte + p, LockMode::exclusive);
      if (!lock || V::load(&entry.state) == 0) continue;
      if (process_has_ended(entry, context_.options.dead_after_ms)) bury(p, Slots<V>::kBriefMs);
    }
  }

  /// The caller holds the lock of the entry, whose process has ended.
  void bury(std::uint32_t p, std::uint32_t timeout_ms) {
    ProcessEntry& entry = context_.control->process(p);
    if (!self_.upkeep.sweep(p + 1, timeout_ms) && p + 1 != context_.process) return;  // tried again later
    for (std::size_t c = 0; c < kCounts; ++c) {
      const auto what = static_cast<Count>(c);
      context_.header().departed.add(what, entry.counters.get(what));
      V::store(&entry.counters.values[c], std::uint64_t{0});
    }
    if (p + 1 != context_.process) context_.count(Count::swept_processes);  // not one that leaves in order
    V::store(&entry.holds_pages, std::uint32_t{0});
    V::store(&entry.lends_ms, std::uint32_t{0});
    V::store(&entry.drops_pages, std::uint32_t{0});
    V::store(&entry.state, std::uint32_t{0});
  }

  Membership member_;
  PoolProcess<V>& self_;
  HostContext& context_;
  Closure& closure_;
  std::atomic<bool> parted_{false};
  std::function<void()> also_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;
  std::thread heartbeat_;
};

}  // namespace beluga
