#include <algorithm>
#include <string>

#include "litmus.hpp"

/// What hosts may do to each other through a device that does not keep them coherent.

namespace {

using namespace litmus;

std::uint64_t observed(Point point, const std::uint64_t* at) {
  V::observe(point, at, 8);
  V::observe_fence(point);
  return Machine::load(at);
}

/// One host writes data and then a flag; the other looks until it sees the flag, then at the data.
template <class Written, class Looked>
Scene message(Written&& written, Looked&& looked) {
  return [=](World& world) {
    sim::Host& from = world.add_host();
    sim::Host& to = world.add_host();
    auto* data = word(world, 1);
    auto* flag = word(world, 9);
    bool stale = false;
    world.spawn(world.add_process(from), "writer", [&] {
      Machine::store(data, std::uint64_t{1});
      written(Point::record, data);
      Machine::store(flag, std::uint64_t{1});
      written(Point::ready, flag);
    });
    world.spawn(world.add_process(to), "reader", [&] {
      Machine::load(data);
      for (int i = 0; i < 30; ++i) {
        if (observed(Point::ready, flag) != 1) continue;
        stale = looked(Point::record, data) != 1;
        return;
      }
    });
    run(world);
    return stale;
  };
}

void publish(Point point, const void* at) { V::publish(point, at, 8); }
void confirm(Point point, const void* at) { V::confirm(point, at, 8); }
std::uint64_t plain(Point, const std::uint64_t* at) { return Machine::load(at); }

bool written_back_by_nobody(World& world) {
  sim::Host& from = world.add_host();
  sim::Host& to = world.add_host();
  auto* data = word(world, 1);
  std::uint64_t read = 0;
  world.spawn(world.add_process(from), "writer", [&] {
    Machine::store(data, std::uint64_t{1});
    Machine::full_fence();
    Machine::sleep_us(10'000);
    world.spawn(world.add_process(to), "reader", [&] { read = observed(Point::ready, data); });
  });
  run(world);
  return read == 0;
}

/// Lease and evict: each writes its line, confirms it, and then observes the other's.
bool dekker_between_hosts(World& world) {
  std::uint64_t* lines[] = {word(world, 1), word(world, world.random().one_in(2) ? 2 : 100)};
  std::uint64_t read[2] = {1, 1};
  for (std::uint32_t i = 0; i < 2; ++i) {
    sim::Host& host = world.add_host();
    const bool looked_before = world.random().one_in(2);
    world.spawn(world.add_process(host), "side", [&, i, looked_before] {
      if (looked_before) Machine::load(lines[1 - i]);
      Machine::store(lines[i], std::uint64_t{1});
      V::confirm(Point::stamp, lines[i], 8);
      read[i] = observed(Point::closing, lines[1 - i]);
    });
  }
  run(world);
  return read[0] == 0 && read[1] == 0;
}

/// The same for several lines at once, with another process on each host that disturbs the caches.
bool batched_dekker(World& world) {
  constexpr std::uint32_t kLines = 3;
  std::uint64_t read[2][kLines];
  for (std::uint32_t i = 0; i < 2; ++i) {
    sim::Host& host = world.add_host();
    world.spawn(world.add_process(host), "side", [&, i] {
      beluga::Place mine[kLines];
      for (std::uint32_t k = 0; k < kLines; ++k) {
        mine[k] = {Point::stamp, word(world, 10 * i + k)};
        Machine::store(word(world, 10 * i + k), std::uint64_t{1});
      }
      V::confirm_all(mine);
      for (std::uint32_t k = 0; k < kLines; ++k)
        V::observe(Point::closing, word(world, 10 * (1 - i) + k), 8);
      V::observe_fence(Point::closing);
      for (std::uint32_t k = 0; k < kLines; ++k)
        read[i][k] = Machine::load(word(world, 10 * (1 - i) + k));
    });
    world.spawn(world.add_process(host), "disturber", [&] {
      for (std::uint32_t k = 0; k < 2 * kLines; ++k) {
        const std::uint32_t line = 10 * world.random().below(2) + world.random().below(kLines);
        if (world.random().one_in(3)) {
          Machine::flush(word(world, line));
        } else {
          Machine::load(word(world, line));
        }
      }
    });
  }
  run(world);
  const bool first = std::find(read[0], read[0] + kLines, 0u) != read[0] + kLines;
  const bool second = std::find(read[1], read[1] + kLines, 0u) != read[1] + kLines;
  return first && second;
}

/// Two hosts write words of their own, in one line or in two.
Scene two_writers(std::uint32_t second_line) {
  return [=](World& world) {
    std::uint64_t* words[] = {word(world, 1), word(world, second_line) + 1};
    for (std::uint64_t* at : words) {
      world.spawn(world.add_process(world.add_host()), "writer", [at] {
        for (std::uint64_t i = 1; i <= 3; ++i) {
          Machine::store(at, i);
          V::confirm(Point::stamp, at, 8);
        }
      });
    }
    run(world);
    world.settle(true);
    return world.device(words[0]) != 3 || world.device(words[1]) != 3;
  };
}

/// A line changes hands; its last owner may have left it dirty.
Scene hand_over(bool flushed) {
  return [=](World& world) {
    sim::Host& before = world.add_host();
    sim::Host& after = world.add_host();
    auto* x = word(world, 1);
    world.spawn(world.add_process(before), "last owner", [&] {
      Machine::store(x, std::uint64_t{1});
      if (flushed) V::confirm(Point::release, x, 8);
      world.spawn(world.add_process(after), "next owner", [&] {
        // What the next owner does before its first store.
        V::observe(Point::release, x, 8);
        V::observe_fence(Point::release);
        Machine::store(x, std::uint64_t{2});
        V::confirm(Point::release, x, 8);
      });
    });
    run(world);
    world.settle(true);
    return world.device(x) == 1;
  };
}

/// A host is paused with a dirty line, another takes the line over, the first goes on.
bool dirty_line_of_a_paused_host(World& world) {
  sim::Host& zombie = world.add_host();
  sim::Host& next = world.add_host();
  auto* x = word(world, 1);
  world.spawn(world.add_process(zombie), "zombie", [&] {
    Machine::store(x, std::uint64_t{1});
    world.pause_host(zombie, sim::Clock::stops);
    Machine::full_fence();
  });
  world.spawn(world.add_process(next), "next", [&] {
    Machine::sleep_us(1'000);
    Machine::store(x, std::uint64_t{2});
    V::confirm(Point::release, x, 8);
    world.resume_host(zombie);
  });
  run(world);
  world.settle(true);
  return world.device(x) == 1;
}

Scene power_off(bool confirmed, std::uint64_t outcome) {
  return [=](World& world) {
    sim::Host& host = world.add_host();
    auto* x = word(world, 1);
    world.spawn(world.add_process(host), "victim", [&] {
      Machine::store(x, std::uint64_t{1});
      Machine::full_fence();
      if (confirmed) V::confirm(Point::stamp, x, 8);
      world.kill_host(host);
      CHECK(false);
    });
    run(world);
    return world.device(x) == outcome;
  };
}

Config with_payload(bool ddio, bool in_order) {
  Config config = small();
  config.payload_begin = 32 * 1024;
  config.payload_end = 64 * 1024;
  config.ddio = ddio;
  config.payload_in_order = in_order;
  return config;
}
constexpr std::uint32_t kPayload = 32 * 1024 / 64;

enum class Way { nt, cached, dma };

/// A payload of some lines is written, published (or not), and read by another host.
Scene payload(Way written, Way read, bool published, bool observed_first) {
  return [=](World& world) {
    constexpr std::size_t kWords = 4 * 8;
    sim::Host& from = world.add_host();
    sim::Host& to = world.add_host();
    auto* at = word(world, kPayload + 4);
    bool wrong = false;
    world.spawn(world.add_process(to), "early reader", [&] {
      std::uint64_t before[kWords];
      world.read(before, at, sizeof before);
      world.spawn(world.add_process(from), "writer", [&] {
        std::uint64_t data[kWords];
        std::fill(data, data + kWords, 1);
        if (written == Way::nt) world.nt_store(at, data, sizeof data);
        if (written == Way::cached) world.cached_store(at, data, sizeof data);
        if (written == Way::dma) world.dma_write(at, data, sizeof data);
        const auto how =
            written == Way::nt ? beluga::PayloadWrite::streamed : beluga::PayloadWrite::cached;
        if (published) V::publish_payload(at, sizeof data, how, true);
        world.spawn(world.add_process(to), "reader", [&] {
          std::uint64_t got[kWords];
          if (observed_first) V::observe_payload(at, sizeof got, true);
          if (read == Way::dma) {
            world.dma_read(got, at, sizeof got);
          } else {
            world.read(got, at, sizeof got);
          }
          wrong = std::find(got, got + kWords, 0u) != got + kWords;
        });
      });
    });
    run(world);
    return wrong;
  };
}

}  // namespace

int main(int argc, char** argv) {
  arguments(argc, argv);
  seen("a reader that does not flush keeps its stale line", message(confirm, plain));
  seen("published lines arrive in any order", message(publish, observed));
  never("confirmed data is older than the flag behind it", message(confirm, observed));
  seen("what nobody writes back is not seen", written_back_by_nobody);
  {
    const Without step(Point::record, Step::observe_fence);
    seen("observe without its fence is stale", message(confirm, observed));
  }

  never("Dekker's pattern between hosts: both miss", dekker_between_hosts, small(), 40'000);
  never("a batch of it", batched_dekker, small(), 20'000);
  const struct {
    Point point;
    Step step;
    const char* name;
  } steps[] = {
      {Point::stamp, Step::confirm_flush, "Dekker's pattern without the flush of confirm"},
      {Point::stamp, Step::confirm_fence, "Dekker's pattern without the first fence of confirm"},
      {Point::stamp, Step::confirm_load, "Dekker's pattern without the load back"},
      {Point::stamp, Step::confirm_last_fence,
       "Dekker's pattern without the last fence of confirm"},
      {Point::closing, Step::observe_flush, "Dekker's pattern without the flush of observe"},
      {Point::closing, Step::observe_fence, "Dekker's pattern without the fence of observe"},
  };
  for (const auto& [point, step, name] : steps) {
    const Without without(point, step);
    seen(name, dekker_between_hosts, small(), 100'000);
    CHECK(sim::Mutations::asked(point, step));
  }

  seen("two writers of one line: one destroys the other's word", two_writers(1));
  never("two writers of two lines: one destroys the other's word", two_writers(2));
  seen("a dirty line left behind overwrites the next owner's", hand_over(false));
  never("a flushed line overwrites the next owner's", hand_over(true));
  seen("a paused host's dirty line overwrites the next owner's", dirty_line_of_a_paused_host);
  seen("power-off loses a dirty line", power_off(false, 0));
  seen("power-off writes a dirty line", power_off(false, 1));
  never("power-off loses a confirmed line", power_off(true, 0));

  const Config in_order = with_payload(true, true);
  const Config unordered = with_payload(true, false);
  const Config no_ddio = with_payload(false, true);
  seen("NT payload that was not published is incomplete",
       payload(Way::nt, Way::cached, false, true), in_order);
  never("NT payload, published and observed, is incomplete",
        payload(Way::nt, Way::cached, true, true), in_order);
  {
    // The last line leaves first and comes back as a prefetch while others are still to leave: it
    // would answer the load.
    const Without step(Point::payload, Step::confirm_flush);
    seen("NT payload, whose last line was not flushed again, is incomplete",
         payload(Way::nt, Way::cached, true, true), in_order);
    seen("cached payload, whose last line was not flushed again, is incomplete",
         payload(Way::cached, Way::cached, true, true), in_order);
    seen("a GPU's write, whose last line was not flushed again, is incomplete",
         payload(Way::dma, Way::cached, true, true), in_order);
  }
  for (const Step step : {Step::publish_write_back, Step::publish_fence, Step::confirm_load}) {
    const Without without(Point::payload, step);
    const std::string name = std::string("payload without \"") +
                             beluga::kStepNames[static_cast<std::size_t>(step)] +
                             "\" is incomplete";
    seen(name.c_str(), payload(Way::cached, Way::cached, true, true), in_order);
  }
  seen("NT payload, published, on a fabric that reorders payload, is incomplete",
       payload(Way::nt, Way::cached, true, true), unordered);
  seen("payload that was not observed is stale for the CPU",
       payload(Way::nt, Way::cached, true, false), in_order);
  seen("payload that was not observed is stale for the GPU",
       payload(Way::nt, Way::dma, true, false), in_order);
  never("payload that was observed is stale for the GPU", payload(Way::nt, Way::dma, true, true),
        in_order);
  never("cached payload, published and observed, is incomplete",
        payload(Way::cached, Way::cached, true, true), in_order, 3'000);
  seen("a GPU's write stays in its host's cache (DDIO)",
       payload(Way::dma, Way::cached, false, true), in_order);
  never("a GPU's write, published and observed, is incomplete",
        payload(Way::dma, Way::dma, true, true), in_order);
  seen("without DDIO, a GPU's write is late", payload(Way::dma, Way::cached, false, true), no_ddio);
  never("without DDIO, a GPU's write, published, is late", payload(Way::dma, Way::dma, true, true),
        no_ddio);
}
