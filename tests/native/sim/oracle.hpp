#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "leases.hpp"
#include "pool_memory.hpp"
#include "world.hpp"

namespace sim {

struct Node;

/// What must hold, told by somebody who sees everything.
///
/// It watches the words of all descriptors where they are written, at the moment at which they
/// become visible to their own host, and judges what the processes are told: G1 (bytes), G2
/// (published is visible), G3 (leased is safe). Host clocks that stood still are nobody's fault: a
/// machine that was paused with its clock is not judged until its next heartbeat. No two hosts may ever believe to own
/// one extent.
class Oracle {
 public:
  Oracle(World& world, const beluga::PoolMemory& memory, std::uint32_t machines);

  /// The payload of a chunk: every word of it names key, slot, generation and place.
  static std::uint64_t word(std::uint32_t key, std::uint32_t slot, std::uint64_t generation,
                            std::uint32_t i);

  /// A store returned as committed.
  void committed(std::uint32_t key, std::uint32_t slot, std::uint64_t generation);
  /// An operation of the running fiber has ended: what it closed and opened again is open for all.
  void operation_ended();

  /// A lookup that began at step `since` has missed `key`.
  void missed(const char* what, std::uint32_t key, std::uint64_t since, bool leasing);
  /// A remove of all copies on this machine returned: they are gone, or nobody finds them any more.
  void removed(std::uint32_t key, std::uint32_t machine);
  /// Is there a copy that somebody could find?
  bool holds(std::uint32_t key) const;
  /// A lookup that began at `since` has found a chunk.
  void found(std::uint32_t key, std::uint32_t slot, std::uint64_t generation, std::uint64_t since);

  /// A process may use this chunk from now on, or no longer.
  void leased(const Node& node, std::shared_ptr<beluga::Lease> lease);
  void released(const beluga::Lease* lease);
  void forget(const Node& node);
  /// The process is about to use what it leased, and believes that it may.
  void using_lease(const Node& node, const beluga::Lease& lease);

  /// This machine's clock stood still; it is judged again from its next heartbeat on.
  void clock_stood(std::uint32_t machine) {
    excused_[machine] = true;
    excused_at_[machine] = world_.steps();
  }
  /// A heartbeat that began at step `began`, after the clock went on, has ended.
  void beat(std::uint32_t machine, std::uint64_t began = ~std::uint64_t{0}) {
    if (began > excused_at_[machine]) excused_[machine] = false;
  }
  /// The pool was formatted anew: nothing is in it, and nobody owns anything.
  void formatted();
  /// A machine lost what its caches held.
  void lost_power(std::uint32_t host);

  std::uint64_t judged() const noexcept { return judged_; }

 private:
  enum class State : std::uint8_t { none, ready, closing, gone };
  struct Copy {
    State state = State::none;
    std::uint32_t key = ~0u;
    std::uint64_t generation = 0;
    std::uint16_t host = 0;
    bool forgotten = false;  // its machine may have lost the last generation
    bool was_chunk = false;  // in this generation
    std::uint16_t closed_by = 0xffff;  // the fiber that closed it last
    std::uint16_t closer = 0xffff;   // the fiber that closed it, while its operation lasts
    std::uint64_t committed_at = 0;  // step at which the store returned; 0: not yet
    std::uint64_t settled_at = 0;    // step since which it has been READY for all to see
    std::uint64_t removed_at = 0;    // step at which a remove returned; 0: it has not
  };
  struct Held {
    const Node* node;
    std::shared_ptr<beluga::Lease> lease;
  };

  void word_written(std::uint32_t slot, const Seen& seen);
  void claim_written(std::uint32_t host, std::uint32_t extent, std::uint8_t claim);
  bool trusted(const Node& node, const beluga::Lease& lease) const;

  World& world_;
  const beluga::PoolMemory& memory_;
  std::vector<Copy> copies_;  // by slot
  std::vector<std::uint64_t> owners_;  // by extent: a bit per host that believes to own it
  std::vector<Held> held_;
  std::vector<bool> excused_;  // by machine
  std::vector<std::uint64_t> excused_at_;
  std::uint64_t judged_ = 0;
};

}  // namespace sim
