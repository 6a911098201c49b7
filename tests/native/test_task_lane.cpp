#include <poll.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <vector>

#include "event_fd.hpp"
#include "scratch.hpp"
#include "task_lane.hpp"

using namespace beluga;

namespace {

/// Holds tasks back until it is opened.
class Gate {
 public:
  void pass() {
    std::unique_lock guard(lock_);
    ++waiting_;
    moved_.notify_all();
    moved_.wait(guard, [&] { return open_; });
  }
  void await(int tasks) {
    std::unique_lock guard(lock_);
    moved_.wait(guard, [&] { return waiting_ >= tasks; });
  }
  void open() {
    const std::lock_guard guard(lock_);
    open_ = true;
    moved_.notify_all();
  }

 private:
  std::mutex lock_;
  std::condition_variable moved_;
  int waiting_ = 0;
  bool open_ = false;
};

void every_task_runs_once_in_order() {
  std::vector<int> order;
  {
    TaskLane lane("test", 1, 100);
    Gate gate;
    CHECK(lane.add([&](bool) { gate.pass(); }));
    for (int i = 0; i < 50; ++i) {
      CHECK(lane.add([&order, i](bool run) {
        if (run) order.push_back(i);
      }));
    }
    Gate last;
    CHECK(lane.add([&](bool) { last.pass(); }));
    gate.open();
    last.await(1);
    last.open();
  }
  CHECK_EQ(order.size(), 50u);
  for (int i = 0; i < 50; ++i) CHECK_EQ(order[static_cast<std::size_t>(i)], i);
}

void threads_work_at_the_same_time() {
  TaskLane lane("test", 3, 10);
  Gate gate;
  for (int i = 0; i < 3; ++i) CHECK(lane.add([&](bool) { gate.pass(); }));
  gate.await(3);
  gate.open();
}

/// A full queue refuses, and stop() tells what waits that it is not done, once, after what runs.
void the_queue_is_bounded_and_stop_drops_it() {
  TaskLane lane("test", 1, 4);
  Gate gate;
  std::atomic<int> done{0};
  std::atomic<int> dropped{0};
  const auto count = [&](bool run) { ++(run ? done : dropped); };
  CHECK(lane.add([&](bool run) {
    gate.pass();
    count(run);
  }));
  gate.await(1);
  for (int i = 0; i < 4; ++i) CHECK(lane.add(count));
  CHECK(!lane.add(count));
  std::thread stopping([&] { lane.stop(); });
  while (dropped < 4) std::this_thread::yield();
  CHECK_EQ(done.load(), 0);
  gate.open();
  stopping.join();
  CHECK_EQ(done.load(), 1);
  CHECK_EQ(dropped.load(), 4);
  CHECK(!lane.add(count));
  lane.stop();
}

void many_add_while_one_stops() {
  for (int round = 0; round < 20; ++round) {
    TaskLane lane("test", 2, 16);
    std::atomic<int> taken{0};
    std::atomic<int> ended{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i) {
      threads.emplace_back([&] {
        for (int k = 0; k < 200; ++k) taken += lane.add([&](bool) { ++ended; });
      });
    }
    lane.stop();
    for (auto& thread : threads) thread.join();
    CHECK_EQ(taken.load(), ended.load());
  }
}

/// stop() waits for what another thread does in run_here(), and refuses it from then on.
void stop_waits_for_guests() {
  TaskLane lane("test", 1, 4);
  Gate gate;
  std::atomic<bool> done{false};
  const TaskLane::Task task = [&](bool run) {
    CHECK(run);
    gate.pass();
    done = true;
  };
  std::thread guest([&] { CHECK(lane.run_here(task)); });
  gate.await(1);
  std::atomic<bool> stopped{false};
  std::thread stopping([&] {
    lane.stop();
    CHECK(done);
    stopped = true;
  });
  while (lane.run_here([](bool) {})) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  CHECK(!stopped);
  gate.open();
  stopping.join();
  guest.join();
}

void a_forked_child_has_no_lane() {
  TaskLane lane("test", 1, 4);
  Gate gate;
  CHECK(lane.add([&](bool) { gate.pass(); }));
  gate.await(1);
  CHECK(scratch::succeeded(scratch::in_child([&] {
    CHECK(!lane.add([](bool) {}));
    CHECK(!lane.run_here([](bool) {}));
    lane.stop();
  })));
  gate.open();
}

void an_event_is_readable_until_it_is_read() {
  const EventFd event;
  pollfd poll{event.fd(), POLLIN, 0};
  CHECK_EQ(::poll(&poll, 1, 0), 0);
  event.signal();
  event.signal();
  CHECK_EQ(::poll(&poll, 1, 0), 1);
  std::uint64_t count = 0;
  CHECK(::read(event.fd(), &count, sizeof count) == sizeof count);
  CHECK_EQ(count, 2u);
  CHECK_EQ(::poll(&poll, 1, 0), 0);
}

}  // namespace

int main() {
  every_task_runs_once_in_order();
  threads_work_at_the_same_time();
  the_queue_is_bounded_and_stop_drops_it();
  many_add_while_one_stops();
  stop_waits_for_guests();
  a_forked_child_has_no_lane();
  an_event_is_readable_until_it_is_read();
}
