#include <vector>

#include "litmus.hpp"

/// What the CPUs of one host may do to each other.

namespace {

using namespace litmus;

/// Two processes of one host write one word each and then read the other's.
Scene dekker(bool fenced, bool in_control_block) {
  return [=](World& world) {
    alignas(64) static thread_local std::uint64_t memory[16];
    std::memset(memory, 0, sizeof memory);
    sim::Host& host = world.add_host();
    world.register_control(host, memory, sizeof memory);
    std::uint64_t* words[] = {in_control_block ? &memory[0] : word(world, 1),
                              in_control_block ? &memory[8] : word(world, 2)};
    std::uint64_t read[2] = {};
    for (std::uint32_t i = 0; i < 2; ++i) {
      world.spawn(world.add_process(host), "side", [&, i] {
        Machine::store(words[i], std::uint64_t{1});
        if (fenced) Machine::full_fence();
        read[i] = Machine::load(words[1 - i]);
      });
    }
    run(world);
    return read[0] == 0 && read[1] == 0;
  };
}

/// Stores of one process are seen in order by another, in the cache of their host and in its
/// control block.
bool message_within_a_host(World& world) {
  alignas(64) static thread_local std::uint64_t memory[8];
  std::memset(memory, 0, sizeof memory);
  sim::Host& host = world.add_host();
  world.register_control(host, memory, sizeof memory);
  std::uint64_t* data = word(world, 1);
  std::uint64_t* flag = world.random().one_in(2) ? word(world, 5) : memory;
  std::uint64_t seen_flag = 0;
  std::uint64_t seen_data = 0;
  world.spawn(world.add_process(host), "writer", [&] {
    Machine::store(data, std::uint64_t{1});
    Machine::store(flag, std::uint64_t{1});
  });
  world.spawn(world.add_process(host), "reader", [&] {
    seen_flag = Machine::load(flag);
    seen_data = Machine::load(data);
  });
  run(world);
  return seen_flag == 1 && seen_data == 0;
}

bool own_stores_are_forwarded(World& world) {
  sim::Host& host = world.add_host();
  bool wrong = false;
  world.spawn(world.add_process(host), "only", [&] {
    auto* at = word(world, 3);
    for (std::uint64_t i = 1; i < 30; ++i) {
      Machine::store(at, i << 32 | i);
      auto* half = reinterpret_cast<std::uint32_t*>(at);
      wrong |= Machine::load(at) != (i << 32 | i) || Machine::load(half) != i ||
               Machine::load(half + 1) != i;
      Machine::store(half + 1, std::uint32_t{77});
      wrong |= Machine::load(at) != (std::uint64_t{77} << 32 | i);
      if (i % 4 == 0) Machine::flush(at);
      std::uint64_t line[8] = {i, i, i, i, i, i, i, i};
      world.nt_store(at, line, sizeof line);
      wrong |= Machine::load(at + 5) != i;
      Machine::store(at + 5, i + 1);
      wrong |= Machine::load(at + 5) != i + 1;
      wrong |= Machine::load(at + 6) != i;
    }
  });
  run(world);
  return wrong;
}

/// Whoever sees the later store: has the line of the earlier one left the host?
Scene write_back_then_store(bool fenced) {
  return [=](World& world) {
    sim::Host& host = world.add_host();
    auto* x = word(world, 1);
    auto* y = word(world, 2);
    bool late = false;
    world.spawn(world.add_process(host), "writer", [&] {
      Machine::store(x, std::uint64_t{1});
      Machine::write_back(x);
      if (fenced) Machine::store_fence();
      Machine::store(y, std::uint64_t{1});
    });
    world.spawn(world.add_process(host), "reader", [&] {
      if (Machine::load(y) == 1) late = world.device(x) == 0 && !host.memory.fabric().in_flight(1);
    });
    run(world);
    return late;
  };
}

/// CLWB comes after older stores to its line, whatever else is in between.
bool write_back_leaves_a_store_behind(World& world) {
  sim::Host& host = world.add_host();
  auto* x = word(world, 1);
  bool lost = false;
  world.spawn(world.add_process(host), "writer", [&] {
    Machine::store(word(world, 7), std::uint64_t{1});
    Machine::store(x, std::uint64_t{1});
    Machine::write_back(x);
    Machine::full_fence();
    world.settle(false);
    lost = world.device(x) != 1;
  });
  run(world);
  return lost;
}

/// Does a load after the flush of a line, and this fence, come from the device?
Scene flush_then_load(void (*fence)()) {
  return [=](World& world) {
    sim::Host& host = world.add_host();
    sim::Host& other = world.add_host();
    auto* x = word(world, 1);
    std::uint64_t read = 1;
    world.spawn(world.add_process(host), "reader", [&] {
      Machine::load(x);
      world.spawn(world.add_process(other), "writer", [&] {
        Machine::store(x, std::uint64_t{1});
        V::confirm(Point::lane, x, 8);
        world.spawn(world.add_process(host), "again", [&] {
          Machine::flush(x);
          fence();
          read = Machine::load(x);
        });
      });
    });
    run(world);
    return read == 0;
  };
}

/// Is a line of non-temporal stores seen in part?
Scene nt_line(bool fenced) {
  return [=](World& world) {
    sim::Host& host = world.add_host();
    sim::Host& other = world.add_host();
    auto* x = word(world, 1);
    bool torn = false;
    bool written = false;
    world.spawn(world.add_process(host), "writer", [&] {
      const std::uint64_t ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
      world.nt_store(x, ones, sizeof ones);
      if (fenced) V::confirm(Point::payload, x, 1);
      written = true;
    });
    world.spawn(world.add_process(other), "reader", [&] {
      for (int i = 0; i < 20 && !torn; ++i) {
        const bool complete = written;
        V::observe_payload(x, 64, true);
        std::uint64_t line[8];
        world.read(line, x, sizeof line);
        int sum = 0;
        for (const std::uint64_t one : line) sum += static_cast<int>(one);
        torn = fenced ? complete && sum != 8 : sum != 0 && sum != 8;
      }
    });
    run(world);
    return torn;
  };
}

/// NT stores to different lines are unordered, until a fence.
Scene nt_lines(bool fenced) {
  return [=](World& world) {
    sim::Host& host = world.add_host();
    std::uint64_t seen[2] = {};
    world.spawn(world.add_process(host), "writer", [&] {
      const std::uint64_t one = 1;
      world.nt_store(word(world, 1), &one, 8);
      if (fenced) Machine::store_fence();
      world.nt_store(word(world, 2), &one, 8);
    });
    world.spawn(world.add_process(host), "reader", [&] {
      seen[1] = Machine::load(word(world, 2));
      seen[0] = Machine::load(word(world, 1));
    });
    run(world);
    return seen[1] == 1 && seen[0] == 0;
  };
}

bool locked_operations_are_atomic(World& world) {
  sim::Host& host = world.add_host();
  auto* x = word(world, 1);
  for (std::uint32_t p = 0; p < 3; ++p) {
    world.spawn(world.add_process(host), "adder", [&, p] {
      for (int i = 0; i < 5; ++i) {
        for (std::uint64_t old = Machine::load(x); !Machine::exchange_if(x, old, old + 1);) {
          old = Machine::load(x);
        }
      }
      Machine::fetch_or(x + 1, std::uint64_t{1} << p);
      if (p == 0) Machine::fetch_and(x + 2, std::uint64_t{0});
    });
  }
  run(world);
  return world.truth(host, x) != 15 || world.truth(host, x + 1) != 7;
}

/// A killed process has done the first so many of its stores.
Scene killed(bool out_of_order) {
  return [=](World& world) {
    sim::Host& host = world.add_host();
    sim::Process& process = world.add_process(host);
    world.spawn(process, "victim", [&] {
      Machine::store(word(world, 1), std::uint64_t{1});
      Machine::store(word(world, 2), std::uint64_t{1});
      world.kill_process(process);
      CHECK(false);
    });
    run(world);
    const auto first = world.truth(host, word(world, 1));
    const auto second = world.truth(host, word(world, 2));
    return out_of_order ? second == 1 && first == 0 : first == 1 && second == 0;
  };
}

}  // namespace

int main(int argc, char** argv) {
  arguments(argc, argv);
  seen("two processes write, then read each other: both miss", dekker(false, false));
  seen("the same in the control block", dekker(false, true));
  never("with MFENCE between", dekker(true, false));
  never("the same in the control block, with MFENCE between", dekker(true, true));
  never("stores of one process are seen out of order within its host", message_within_a_host);
  never("a CPU does not see its own stores", own_stores_are_forwarded, small(), 1'000);
  seen("a CLWB without a fence is later than a younger store", write_back_then_store(false));
  never("a CLWB is later than a store behind SFENCE", write_back_then_store(true));
  never("a CLWB leaves an older store of its line behind", write_back_leaves_a_store_behind);
  seen("a load after CLFLUSHOPT and no fence is stale", flush_then_load([] {}));
  seen("a load after CLFLUSHOPT and SFENCE is stale",
       flush_then_load([] { Machine::store_fence(); }));
  never("a load after CLFLUSHOPT and MFENCE is stale",
        flush_then_load([] { Machine::full_fence(); }));
  seen("a line of NT stores is seen in part", nt_line(false));
  never("a line of NT stores is seen in part after its confirm", nt_line(true));
  seen("NT stores are seen out of order", nt_lines(false));
  never("NT stores are seen out of order across SFENCE", nt_lines(true));
  never("a locked operation is torn", locked_operations_are_atomic, small(), 2'000);
  seen("a killed process loses its last store", killed(false));
  never("a killed process loses an earlier store than the last", killed(true));
}
