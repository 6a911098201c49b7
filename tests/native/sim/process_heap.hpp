#pragma once

namespace sim {

/// What a simulated process has allocated. A killed process is never unwound, so its memory is
/// taken back when the world ends. Programs that use the simulator get its operator new and delete.
class ProcessHeap {
 public:
  ProcessHeap() { ends_.next = ends_.before = &ends_; }
  ProcessHeap(const ProcessHeap&) = delete;
  ProcessHeap& operator=(const ProcessHeap&) = delete;
  ~ProcessHeap() { detach(); }

  /// Frees what is still allocated, without running destructors.
  void free_all() noexcept;
  /// What is still allocated belongs to nobody from now on.
  void detach() noexcept;

  struct Links {
    Links* next;
    Links* before;
  };

  /// Who pays for what is allocated now; null: not a simulated process.
  static thread_local constinit ProcessHeap* current;

 private:
  friend struct ProcessHeapAccess;
  Links ends_;
};

/// While it lives, allocations belong to the test and not to the simulated process that runs:
/// needed where a fiber appends to something that outlives the world.
class Outside {
 public:
  Outside() noexcept : before_(ProcessHeap::current) { ProcessHeap::current = nullptr; }
  ~Outside() { ProcessHeap::current = before_; }
  Outside(const Outside&) = delete;
  Outside& operator=(const Outside&) = delete;

 private:
  ProcessHeap* before_;
};

}  // namespace sim
