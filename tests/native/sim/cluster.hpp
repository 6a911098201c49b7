#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "check.hpp"
#include "control_block.hpp"
#include "key_record.hpp"
#include "machine.hpp"
#include "noncoherent.hpp"
#include "oracle.hpp"
#include "pool_process.hpp"

namespace sim {

using V = beluga::Noncoherent<Machine>;
using Pool = beluga::PoolProcess<V>;

/// How large a simulated pool is, and how time passes in it.
struct ClusterShape {
  std::uint32_t hosts = 2;
  std::uint32_t spares = 0;  // more machines, numbered from `hosts` on, that may take a host id
  std::uint32_t extents = 4;
  std::uint32_t slots_per_extent = 4;
  std::uint32_t slot_bytes = 128;  // two lines of payload
  std::uint32_t buckets = 4;
  std::uint32_t keys = 12;
  std::uint32_t heartbeat_ms = 4;
  std::uint32_t dead_after_ms = 60;
  std::uint32_t lease_ms = 30;

  /// Makes room for such a pool in a world.
  void size(Config& config) const;
  /// Clocks that fit to what a step of this configuration costs.
  ClusterShape paced(const Config& config) const;
};

beluga::AttachOptions attach_options(const ClusterShape& shape, std::uint32_t host);

/// One process of a host, as the cluster keeps it. Its PoolProcess lives on the process's own heap.
struct Node {
  sim::Process* process = nullptr;
  std::uint32_t machine = 0;  // as a rule the host id's own
  std::uint32_t host = 0;
  std::uint32_t entry = 0;  // process entry: 1..32
  Pool* pool = nullptr;     // null: not attached yet
  bool attaching = false;
  bool usable = false;      // attached, and its main fiber has started the workers
  bool closed = false;      // it found that it must stop for ever
  std::string refusal;      // why attaching failed

  bool alive() const noexcept { return process && process->alive; }
};

/// One pool in a simulated world: hosts with control blocks, processes that attach, beat, bury each
/// other, and work.
class Cluster {
 public:
  /// `directory`: for the files behind the control blocks, which worlds may use one after the other.
  Cluster(World& world, const ClusterShape& shape, const std::string& directory);
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  /// A process of a host that attaches, beats, and then runs `body` (which may end at any time).
  Node& start(std::uint32_t host, std::function<void(Node&)> body, bool certain = true) {
    return start_on(host, host, std::move(body), certain);
  }
  /// On any machine.
  Node& start_on(std::uint32_t machine, std::uint32_t host, std::function<void(Node&)> body, bool certain);
  /// Scenes, set outside of any fiber at no cost. Hosts [first, first + count) are members of old, with
  /// a process each that has attached and beats no more.
  void members(std::uint32_t first, std::uint32_t count);
  /// One more process of a host.
  Node& present(std::uint32_t host);
  /// Key `k` is in the pool, stored by this process, and on the device.
  void stored(Node& node, std::uint32_t k);
  /// Another thread of it.
  void thread(Node& node, const char* name, std::function<void(Node&)> body);

  World& world() noexcept { return world_; }
  const ClusterShape& shape() const noexcept { return shape_; }
  Oracle& oracle() noexcept { return oracle_; }
  const beluga::PoolMemory& memory() const noexcept { return *memory_; }
  std::vector<std::unique_ptr<Node>>& nodes() noexcept { return nodes_; }
  sim::Host& machine(std::uint32_t number) noexcept { return *machines_[number]; }
  beluga::ControlBlock& control(std::uint32_t machine) noexcept { return *controls_[machine]; }
  const beluga::KeyBatch& key(std::uint32_t k) const noexcept { return keys_[k]; }
  std::uint32_t keys() const noexcept { return static_cast<std::uint32_t>(keys_.size()); }

  // --- What users of a pool do. Each checks what it sees against the oracle.

  enum class Write { streamed, cached, dma };
  /// Stores key `k`; true if it is in the pool then.
  bool put(Node& node, std::uint32_t k, Write how);
  bool lookup(Node& node, std::uint32_t k);
  /// Leases, reads and checks a chunk; true for a hit.
  bool read(Node& node, std::uint32_t k, bool dma, std::uint32_t linger_us = 0);
  bool evict_some(Node& node);
  void remove(Node& node, std::uint32_t k);
  /// Looks for damage, whatever others do meanwhile; there must be none.
  void check(Node& node);

  /// The parts of put() and read(), for whoever wants something to happen in between.
  bool reserve(Node& node, beluga::Slot& slot);
  void fill(std::uint32_t k, const beluga::Slot& slot, Write how);
  /// True: committed, or there already.
  bool commit(Node& node, std::uint32_t k, const beluga::Slot& slot, Write how);
  void abandon(Node& node, const beluga::Slot& slot);
  /// Null: a miss.
  std::shared_ptr<beluga::Lease> lease(Node& node, std::uint32_t k);
  /// Copies a leased chunk and looks whether it is untouched; then its bytes must be right.
  bool transfer(Node& node, std::uint32_t k, beluga::Lease& lease, bool dma);
  void release(Node& node, const std::shared_ptr<beluga::Lease>& lease);

  /// A machine loses power and is booted again; its processes are gone.
  void power_cycle(std::uint32_t machine);
  /// Kills every process of a machine.
  void kill_all(std::uint32_t machine);
  void kill(Node& node);
  /// A process of this machine formats the pool by force, as `beluga format --force` does. It takes a while; whoever
  /// attaches from formatted() on attaches to the new pool.
  void format(std::uint32_t machine);
  bool formatted() const noexcept { return memory_ != former_memory_ && former_memory_; }

  /// After the last step: everybody alive is resumed, what is dead is started again, and a while
  /// passes. Then no space may be lost and every record must be sound.
  void rest_and_check();

  void stop() noexcept { stopping_ = true; }
  bool stopping() const noexcept { return stopping_; }

 private:
  void main_fiber(Node& node, const std::function<void(Node&)>& body, bool certain);
  bool attach(Node& node, bool certain);
  void heartbeat_fiber(Node& node);
  void bury_dead(Node& node);
  void check_space(Node& node);
  bool may_write(Node& node);
  static std::string name_of(const beluga::Superblock& sb, std::uint64_t offset);

  World& world_;
  const ClusterShape shape_;
  std::shared_ptr<beluga::PoolMemory> memory_;
  std::shared_ptr<beluga::PoolMemory> former_memory_;  // before a format
  std::vector<std::shared_ptr<beluga::ControlBlock>> controls_;
  std::vector<sim::Host*> machines_;
  std::vector<std::unique_ptr<Node>> nodes_;
  std::vector<beluga::KeyBatch> keys_;
  Oracle oracle_;
  bool stopping_ = false;
};

}  // namespace sim
