#include <malloc.h>

#include <chrono>
#include <csignal>
#include <mutex>
#include <new>
#include <stdexcept>
#include <vector>

#include "litmus.hpp"
#include "scratch.hpp"

/// The simulator itself: locks, faults, time, determinism, memory, speed.

namespace {

using namespace litmus;
using beluga::LockResult;
using beluga::RobustMutex;

bool mutexes_exclude(World& world) {
  sim::Process& process = world.add_process(world.add_host());
  Machine::Mutex mutex;
  int inside = 0;
  int done = 0;
  bool together = false;
  for (int i = 0; i < 3; ++i) {
    world.spawn(process, "thread", [&] {
      for (int k = 0; k < 5; ++k) {
        const std::lock_guard guard(mutex);
        together |= ++inside != 1;
        Machine::load(word(world, 1));
        if (k == 2) Machine::sleep_us(50);
        --inside;
        ++done;
      }
      if (mutex.try_lock()) mutex.unlock();
    });
  }
  run(world);
  return together || done != 15;
}

/// The memory of a mutex that the simulator never touches.
struct Fake {
  alignas(64) unsigned char bytes[sizeof(RobustMutex)] = {};
  RobustMutex& mutex() { return *std::launder(reinterpret_cast<RobustMutex*>(bytes)); }
};

bool robust_mutexes(World& world) {
  sim::Host& host = world.add_host();
  Fake fake;
  RobustMutex& mutex = fake.mutex();
  sim::Process& victim = world.add_process(host);
  int inside = 0;
  bool wrong = false;
  int died = 0;
  world.spawn(victim, "victim", [&] {
    Machine::store(word(world, 1), std::uint64_t{7});
    wrong |= Machine::lock(mutex, 1'000) != LockResult::acquired;
    Machine::sleep_us(3'000);
    world.kill_process(victim);
  });
  for (int i = 0; i < 3; ++i) {
    world.spawn(world.add_process(host), "taker", [&] {
      Machine::sleep_us(1'000);
      wrong |= Machine::lock(mutex, 0) != LockResult::timed_out;
      const std::uint64_t before = Machine::now_ms();
      wrong |= Machine::lock(mutex, 1) != LockResult::timed_out;
      wrong |= Machine::now_ms() > before + 200;
      const LockResult result = Machine::lock(mutex, 10'000);
      wrong |= result == LockResult::timed_out || ++inside != 1 ||
               world.holder(&mutex) != world.running();
      died += result == LockResult::owner_died ? 1 : 0;
      Machine::load(word(world, 1));
      --inside;
      Machine::unlock(mutex);
    });
  }
  run(world);
  return wrong || died != 1;
}

void forbidden_locks_are_reported() {
  World world(small(), 1);
  Fake fake;
  world.spawn(world.add_process(world.add_host()), "reader", [&] {
    const sim::NoLocks none;
    Machine::lock(fake.mutex(), 1);
  });
  CHECK(world.run(1'000) == sim::Outcome::failed);
  CHECK(world.failure().find("G7") != std::string::npos);
}

bool clocks_and_sleeps(World& world) {
  sim::Host& steady = world.add_host();
  sim::Host& stopped = world.add_host();
  bool wrong = false;
  world.spawn(world.add_process(steady), "steady", [&] {
    const std::uint64_t before = Machine::now_ms();
    Machine::sleep_us(500'000);
    const std::uint64_t slept = Machine::now_ms() - before;
    wrong |= slept < 499 || slept > 600;
    world.resume_host(stopped);
  });
  world.spawn(world.add_process(stopped), "stopped", [&] {
    const std::uint64_t before = Machine::now_ms();
    world.after_us(1'000, [&] { world.pause_host(stopped, sim::Clock::stops); });
    Machine::sleep_us(20'000);
    const std::uint64_t slept = Machine::now_ms() - before;
    wrong |= slept < 19 || slept > 120 || world.time_ns() < 480'000'000;
  });
  run(world);
  return wrong;
}

/// A paused process does nothing, its timers included, and goes on where it was.
bool pauses(World& world) {
  sim::Host& host = world.add_host();
  sim::Process& paused = world.add_process(host);
  std::uint64_t count = 0;
  bool wrong = false;
  world.spawn(paused, "paused", [&] {
    for (; count < 20; ++count) {
      if (count % 3 == 0) Machine::sleep_us(10);
      Machine::store(word(world, 1), count);
    }
  });
  world.spawn(world.add_process(host), "other", [&] {
    Machine::sleep_us(20);
    world.pause_process(paused);
    const std::uint64_t before = count;
    wrong |= Machine::load(word(world, 1)) != world.truth(host, word(world, 1));
    Machine::sleep_us(100'000);
    wrong |= count != before;
    world.resume_process(paused);
  });
  run(world);
  return wrong || count != 20;
}

/// A host that was switched off starts anew: empty caches, another clock, free locks.
bool reboots(World& world) {
  sim::Host& host = world.add_host();
  Fake fake;
  bool wrong = false;
  world.spawn(world.add_process(host), "before", [&] {
    Machine::store(word(world, 1), std::uint64_t{1});
    V::confirm(Point::stamp, word(world, 1), 8);
    Machine::store(word(world, 2), std::uint64_t{1});
    wrong |= Machine::lock(fake.mutex(), 1) != LockResult::acquired;
    Machine::sleep_us(1'000'000'000);
  });
  world.after_us(1'000, [&] {
    world.kill_host(host);
    world.boot_host(host);
    const std::uint64_t on_device = world.device(word(world, 2));
    world.spawn(world.add_process(host), "after", [&, on_device] {
      wrong |= Machine::load(word(world, 1)) != 1 || Machine::load(word(world, 2)) != on_device;
      wrong |= Machine::lock(fake.mutex(), 1) != LockResult::acquired;
      Machine::unlock(fake.mutex());
    });
  });
  run(world);
  return wrong || world.time_ns() > 1'000'000'000;
}

/// Exceptions that are in flight on one fiber while others run.
bool exceptions_keep_apart(World& world) {
  sim::Process& process = world.add_process(world.add_host());
  bool wrong = false;
  for (int i = 0; i < 4; ++i) {
    world.spawn(process, "thrower", [&, i] {
      for (int k = 0; k < 3; ++k) {
        try {
          try {
            Machine::load(word(world, 1));
            throw std::runtime_error(std::to_string(i));
          } catch (...) {
            Machine::load(word(world, 2));
            throw;
          }
        } catch (const std::runtime_error& error) {
          Machine::load(word(world, 3));
          wrong |= error.what() != std::to_string(i) || std::uncaught_exceptions() != 0;
        }
      }
    });
  }
  run(world);
  return wrong;
}

void a_gpu_outlives_its_process() {
  Config config = small();
  config.environment = 200;
  World world(config, 5);
  sim::Process& process = world.add_process(world.add_host());
  std::vector<std::uint64_t> data(8 * 200, 1);
  world.spawn(process, "victim",
              [&] { world.dma_write(word(world, 8), data.data(), data.size() * 8); });
  world.spawn(world.add_process(world.add_host()), "killer", [&] {
    Machine::sleep_us(1);
    world.kill_process(process);
    CHECK(!world.gone(process));
    while (!world.gone(process)) Machine::sleep_us(10);
  });
  run(world, 100'000);
  CHECK_EQ(world.truth(*world.hosts()[0], word(world, 8 + 199)), std::uint64_t{1});
}

void watches_see_each_stage() {
  World world(small(), 3);
  sim::Host& host = world.add_host();
  auto* x = word(world, 3);
  std::vector<sim::Seen> seen;
  world.watch(world.offset(x), 8, [&](const sim::Seen& write) { seen.push_back(write); });
  world.spawn(world.add_process(host), "writer", [&] {
    Machine::store(x, std::uint64_t{5});
    Machine::store(x + 1, std::uint64_t{6});
    V::confirm(Point::lane, x, 8);
    CHECK(Machine::exchange_if(x, std::uint64_t{5}, std::uint64_t{8}));
  });
  run(world);
  CHECK_EQ(seen.size(), 5u);
  CHECK(seen[0].stage == sim::Seen::Stage::issued && seen[0].value == 5);
  CHECK(seen[1].stage == sim::Seen::Stage::visible && seen[1].value == 5);
  CHECK(seen[2].stage == sim::Seen::Stage::arrived && seen[2].before == 0);
  CHECK(seen[3].stage == sim::Seen::Stage::issued && seen[3].value == 8 && seen[3].before == 5);
  CHECK_EQ(world.truth(host, x), std::uint64_t{8});
  CHECK_EQ(world.device(x), std::uint64_t{5});
}

void a_fiber_that_waits_for_ever_is_told() {
  World world(small(), 1);
  sim::Process& process = world.add_process(world.add_host());
  Machine::Mutex mutex;
  world.spawn(process, "first", [&] { mutex.lock(); });
  world.spawn(process, "second", [&] { mutex.lock(); });
  CHECK(world.run(10'000) == sim::Outcome::stuck);
}

void plain_accesses_fault() {
  const int status = scratch::in_child([] {
    std::fclose(stderr);
    World world(small(), 1);
    world.spawn(world.add_process(world.add_host()), "careless", [&] {
      volatile std::uint64_t* at = word(world, 1);
      *at = 1;
    });
    world.run(1'000);
  });
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

/// Several hosts that publish, observe and confirm lines at random, until the steps are used up.
void bustle(World& world, std::uint32_t hosts, std::uint32_t processes) {
  for (std::uint32_t h = 0; h < hosts; ++h) {
    sim::Host& host = world.add_host();
    for (std::uint32_t p = 0; p < processes; ++p) {
      world.spawn(world.add_process(host), "busy", [&world, h] {
        for (std::uint64_t i = 0;; ++i) {
          auto* at = word(world, world.random().below(1'000));
          switch (world.random().below(6)) {
            case 0:
              Machine::store(at, i);
              V::publish(Point::lane, at, 8);
              break;
            case 1:
              Machine::store(at + h % 8, i);
              V::confirm(Point::stamp, at, 8);
              break;
            case 2:
              Machine::exchange_if(at, i, i + 1);
              break;
            case 3:
              if (world.random().one_in(50)) Machine::sleep_us(world.random().below(100));
              break;
            default:
              V::observe(Point::ready, at, 8);
              V::observe_fence(Point::ready);
              Machine::load(at);
          }
        }
      });
    }
  }
}

void the_same_seed_gives_the_same_run() {
  const auto hash_of = [](std::uint64_t seed) {
    World world(small().varied(seed), seed);
    bustle(world, 3, 2);
    world.after_us(50, [&world] { world.kill_process(world.fibers()[0]->process); });
    world.at_step(3'000, [&world] { world.kill_host(*world.hosts()[1]); });
    CHECK(world.run(20'000) == sim::Outcome::out_of_steps);
    return world.trace_hash();
  };
  std::uint64_t last = 0;
  for (std::uint64_t seed = 1; seed < 40; ++seed) {
    const std::uint64_t hash = hash_of(seed);
    CHECK_EQ(hash, hash_of(seed));
    CHECK(hash != last);
    last = hash;
  }
}

/// Killed fibers are never unwound, and yet nothing of them stays.
void memory_does_not_grow() {
  const auto once = [](std::uint64_t seed) {
    World world(small(), seed);
    sim::Process& process = world.add_process(world.add_host());
    for (int i = 0; i < 4; ++i) {
      world.spawn(process, "leaks", [&world] {
        std::vector<std::vector<std::uint64_t>> held;
        for (int k = 0; k < 100; ++k) {
          held.emplace_back(1'000, 1);
          world.nt_store(word(world, 5), held.back().data(), 512);
        }
      });
    }
    world.at_step(150, [&] { world.kill_process(process); });
    world.run(10'000);
  };
  for (std::uint64_t seed = 0; seed < 20; ++seed) once(seed);
  const std::size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
  for (std::uint64_t seed = 0; seed < 500; ++seed) once(seed);
  CHECK(mallinfo2().uordblks + mallinfo2().hblkhd < before + 100'000);
}

void speed(std::uint32_t hosts) {
  const auto start = std::chrono::steady_clock::now();
  constexpr std::uint64_t kSteps = 1'000'000;
  Config config = small();
  World world(config, 1);
  bustle(world, hosts, 2);
  world.run(kSteps);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  std::printf("%u hosts of 2 processes: %.2f million steps/s; %llu loads, %llu of them stale\n",
              hosts, kSteps / took.count() / 1e6,
              static_cast<unsigned long long>(world.trace().count(sim::Did::load)),
              static_cast<unsigned long long>(world.trace().stale_loads()));
}

}  // namespace

int main(int argc, char** argv) {
  arguments(argc, argv);
  never("mutex: two inside, or none", mutexes_exclude, small(), 1'000);
  never("robust mutex: not robust", robust_mutexes, small(), 1'000);
  never("clocks: wrong", clocks_and_sleeps, small(), 300);
  never("pauses: not kept", pauses, small(), 300);
  never("reboots: something stays", reboots, small(), 300);
  never("exceptions: mixed up between fibers", exceptions_keep_apart, small(), 300);
  if (traced_name) return 0;
  forbidden_locks_are_reported();
  a_gpu_outlives_its_process();
  watches_see_each_stage();
  a_fiber_that_waits_for_ever_is_told();
  plain_accesses_fault();
  the_same_seed_gives_the_same_run();
  memory_does_not_grow();
  for (const std::uint32_t hosts : {2u, 4u, 8u}) speed(hosts);
}
