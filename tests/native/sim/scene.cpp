#include "cluster.hpp"

/// Scenes: what happened before the first step, and cost nothing.
namespace sim {

using namespace beluga;

namespace {

/// Outside of fibers, what is allocated still belongs to the process that acts.
class Within {
 public:
  Within(World& world, Process& process) : before_(ProcessHeap::current) {
    world.act_as(process.host);
    ProcessHeap::current = &process.heap;
  }
  ~Within() { ProcessHeap::current = before_; }

 private:
  ProcessHeap* before_;
};

}  // namespace

void Cluster::members(std::uint32_t first, std::uint32_t count) {
  // Members before anybody attaches, so that nobody waits for readers.
  for (std::uint32_t h = first; h < first + count; ++h) {
    V::store(&memory_->host(h)->identity.state, static_cast<std::uint32_t>(HostState::member));
  }
  for (std::uint32_t h = first; h < first + count; ++h) present(h);
}

Node& Cluster::present(std::uint32_t host) {
  world_.begin_at(1);
  Node& node = *nodes_.emplace_back(std::make_unique<Node>());
  node.machine = host;
  node.host = host;
  node.process = &world_.add_process(machine(host));
  const Within within(world_, *node.process);
  ControlBlock& control = *controls_[host];
  const bool first = !control.header().ready;
  if (first) {
    control.reset(*memory_, host);
    control.header().nonce = 1'000'000 + host;
  }
  std::uint32_t entry = 0;
  while (control.process(entry).state) ++entry;
  node.entry = entry + 1;
  node.pool = new Pool(memory_, controls_[host], attach_options(shape_, host), node.entry);
  if (first) {
    node.pool->start_host(true, 0);
  } else {
    node.pool->hosts.refresh_active();
  }
  control.process(entry).state = 1;
  node.pool->heartbeat.beat(0, 0);
  node.usable = true;
  return node;
}

void Cluster::stored(Node& node, std::uint32_t k) {
  const Within within(world_, *node.process);
  Slot slot;
  if (!reserve(node, slot)) return;
  fill(k, slot, Write::cached);
  commit(node, k, slot, Write::cached);
}

}  // namespace sim
