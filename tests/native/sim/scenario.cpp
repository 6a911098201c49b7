#include "scenario.hpp"

#include <algorithm>
#include <utility>

namespace sim {

Stage::Stage(World& the_world, Cluster& the_cluster)
    : world(the_world), cluster(the_cluster), random(the_world.random()), shape(the_cluster.shape()) {
  world.on_step([this](World&) {
    while (pulled_ != 0) {
      const auto it = std::find_if(triggers_.begin(), triggers_.end(), [](const Trigger& t) { return *t.pulled; });
      --pulled_;
      if (it == triggers_.end()) continue;
      const std::function<void()> then = std::move(it->then);
      triggers_.erase(it);
      then();
    }
  });
}

Node& Stage::join_on(std::uint32_t machine, std::uint32_t host, bool certain) {
  Node& node = cluster.start_on(machine, host, [](Node&) {}, certain);
  if (!until([&] { return node.usable || node.closed || !node.alive(); }, 6 * shape.dead_after_ms)) {
    expect(false, "G5: attaching ends");
  }
  return node;
}

std::shared_ptr<bool> Stage::begin(Node& node, const char* name, std::function<void()> body) {
  auto done = std::make_shared<bool>(false);
  if (!node.alive()) return done;
  cluster.thread(node, name, [done, body = std::move(body)](Node&) {
    body();
    *done = true;
  });
  return done;
}

void Stage::await(const Node& node, const std::shared_ptr<bool>& done, const char* what, std::uint64_t limit_ms) {
  const auto away = [&] { return !node.alive() || node.process->paused || node.process->host.paused; };
  const bool ended = until([&] { return *done || away(); }, limit_ms ? limit_ms : 40 * shape.dead_after_ms);
  if (!ended && !failed()) world.fail(std::string("G5: ") + what + " does not end");
}

void Stage::act(Node& node, std::function<void()> body, std::uint64_t limit_ms) {
  if (failed()) return;
  await(node, begin(node, "act", std::move(body)), "what a process does", limit_ms);
}

bool Stage::until(const std::function<bool()>& holds, std::uint64_t limit_ms) {
  if (failed()) return false;
  const std::uint64_t limit = world.time_ns() + limit_ms * 1'000'000;
  world.after_us(limit_ms * 1'000, [] {});  // so that time can pass even if all stand still
  bool held = false;
  const auto over = [&] { return (held = holds()) || world.time_ns() >= limit; };
  if (world.run_until(over, 20'000'000) == Outcome::out_of_steps) world.fail("G5: a scene takes too many steps");
  return held;
}

void Stage::pass(std::uint64_t ms) {
  until([] { return false; }, ms);
}

void Stage::expect(bool holds, const char* what) {
  if (!holds && !failed()) world.fail(std::string("expected: ") + what);
}

void Stage::when(const void* place, std::uint64_t bytes, std::function<bool(const Seen&)> is, std::uint32_t steps,
                 std::function<void()> then) {
  auto pulled = std::make_shared<bool>(false);
  triggers_.push_back({pulled, [this, steps, then = std::move(then)] {
                         steps ? soon(steps, then) : then();
                       }});
  world.watch(world.offset(place), bytes, [this, pulled, is = std::move(is)](const Seen& seen) {
    if (*pulled || !is(seen)) return;
    *pulled = true;
    ++pulled_;
  });
}

void Stage::soon(std::uint32_t steps, std::function<void()> then) {
  world.at_step(world.steps() + 1 + random.below(steps), std::move(then));
}

bool Stage::store(Node& node, std::uint32_t k) { return cluster.put(node, k, any_write()); }

bool Stage::store_soon(Node& node, std::uint32_t k, int tries) {
  for (int i = 0; i < tries && !node.closed && !cluster.stopping(); ++i) {
    if (store(node, k)) return true;
    Machine::sleep_us(shape.heartbeat_ms * 500);
  }
  return false;
}

void Stage::bustle(Node& node, std::uint32_t n) {
  for (std::uint32_t i = 0; i < n && !node.closed && !cluster.stopping(); ++i) {
    const std::uint32_t k = random.below(cluster.keys());
    switch (random.below(8)) {
      case 0: case 1: case 2: store(node, k); break;
      case 3: cluster.lookup(node, k); break;
      case 4: cluster.evict_some(node); break;
      case 5: cluster.remove(node, k); break;
      default: cluster.read(node, k, random.one_in(3)); break;
    }
    if (random.one_in(4)) Machine::sleep_us(random.below(shape.heartbeat_ms * 1'000));
  }
}

const beluga::HotDescriptor* Stage::chunk_of(std::uint32_t host, std::uint32_t k) const {
  using namespace beluga;
  const PoolMemory& memory = cluster.memory();
  const Fingerprint print = cluster.key(k).prints[0];
  for (std::uint32_t slot = 0; slot < memory.slot_limit(); ++slot) {
    if (claim(host, memory.extent_of(slot)) != Claim::owned) continue;
    const HotDescriptor* hot = memory.hot(slot);
    sim::Host& machine = cluster.machine(host);
    const std::uint64_t word = world.truth(machine, &hot->word);
    if (state_of(word) != SlotState::ready && state_of(word) != SlotState::closing) continue;
    if (world.truth(machine, &hot->print_lo) == print.lo && world.truth(machine, &hot->print_hi) == print.hi) return hot;
  }
  return nullptr;
}

beluga::Claim Stage::claim(std::uint32_t host, std::uint32_t extent, std::uint32_t machine) const {
  return static_cast<beluga::Claim>(world.truth(cluster.machine(machine), cluster.memory().claims(host) + extent));
}

std::uint32_t Stage::owned_by(std::uint32_t host, std::uint32_t machine) const {
  std::uint32_t n = 0;
  for (std::uint32_t e = 0; e < shape.extents; ++e) n += claim(host, e, machine) == beluga::Claim::owned;
  return n;
}

void Stage::hold_back(const Node& node, const std::string& name, std::uint64_t steps) {
  for (const auto& fiber : world.fibers()) {
    if (&fiber->process == node.process && fiber->name == name) fiber->stalled_until = world.steps() + steps;
  }
}

void Stage::until_idle(const Node& node) {
  until(
      [&] {
        return std::all_of(world.fibers().begin(), world.fibers().end(), [&](const auto& fiber) {
          return &fiber->process != node.process || fiber->over() || fiber->state == Fiber::State::sleeping;
        });
      },
      4 * shape.dead_after_ms);
}

ScenarioResult play(const Scenario& scenario, std::uint64_t seed, const std::string& directory, std::FILE* trace) {
  Config config = Config{}.varied(seed);
  config.ddio = seed % 3 != 0;
  config.trace = trace;
  ClusterShape shape = scenario.shape.paced(config);
  shape.lease_ms = shape.heartbeat_ms * scenario.lease_beats;
  shape.size(config);
  World world(config, seed);
  Cluster cluster(world, shape, directory);
  Stage stage(world, cluster);
  scenario.play(stage);
  if (!world.failed()) cluster.rest_and_check();
  if (world.failed() && !trace) world.print_trace(stderr);
  return {world.failed() ? world.failure() : "", world.steps(), cluster.oracle().judged()};
}

std::vector<Scenario> all_scenarios() {
  std::vector<Scenario> all;
  for (const auto& some :
       {claim_scenarios(), verdict_scenarios(), handover_scenarios(), host_scenarios(), process_scenarios(),
        chunk_scenarios(), pressure_scenarios(), request_scenarios(), format_scenarios(), tick_scenarios(),
        dead_scenarios()}) {
    all.insert(all.end(), some.begin(), some.end());
  }
  return all;
}

}  // namespace sim
