#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace beluga {

/// A few native threads with one bounded queue, first in, first out.
///
/// The threads start with the first task, sleep while there is none, and end with stop(). In a child of fork(), where
/// they do not exist, add() and run_here() refuse everything and stop() does nothing.
class TaskLane {
 public:
  /// What is to be done. Called once, with `run` true when it is to be done now, or with `run` false when it will not
  /// be done. Must not throw.
  using Task = std::function<void(bool run)>;

  /// `name`: of the threads, at most 15 characters. At most `capacity` tasks wait.
  TaskLane(const char* name, int threads, std::size_t capacity);
  /// As stop().
  ~TaskLane();
  TaskLane(const TaskLane&) = delete;
  TaskLane& operator=(const TaskLane&) = delete;

  /// Takes the task, or returns false without calling it: the queue is full, the lane was stopped, or there are no
  /// threads to be had.
  bool add(Task task);
  /// Calls the task on the calling thread, with `run` true, whatever waits; or returns false without calling it: the
  /// lane was stopped.
  bool run_here(const Task& task);
  /// Tells what still waits that it will not be done, and waits for what is being done, on whatever thread. Idempotent.
  void stop() noexcept;

 private:
  class Crew;
  std::unique_ptr<Crew> crew_;
};

}  // namespace beluga
