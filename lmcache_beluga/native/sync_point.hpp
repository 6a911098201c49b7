#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace beluga {

/// Every place where hosts synchronise: one name for the two sides of it. The protocols name the point in each
/// publish, confirm, observe and re-check; the simulator can switch each step of each point off, and must then
/// find a broken promise.
enum class Point : std::uint8_t {
  lane,           // an index entry: insert and remove -> find
  record,         // cold lines and body of a descriptor -> lease
  ready,          // the word READY -> find, lease
  closing,        // the word CLOSING -> lease; with `stamp` Dekker's pattern
  reopen,         // CLOSING given up -> lease
  writing,        // the word WRITING: of interest to its own host alone
  freed,          // generation + 1 -> the check after a transfer
  void_slot,      // descriptors of an extent that is cut anew
  payload,        // the chunk's bytes -> whoever leases it
  stamp,          // a lease stamp -> the evictor
  stamp_lowered,  // a lease that ended -> the evictor
  renewal,        // a later stamp -> the evictor
  heartbeat,      // tick -> whoever judges a host
  lease_epoch,    // leases void after a late heartbeat
  identity,       // a host page's first line: joining, nonce, retirement
  claim,          // a step of an extent's election
  header,         // how an extent is cut -> recovery, walks
  release,        // the lines of an extent that is given up -> its next owner
  request,        // an entry of a request ring -> the owner
  request_head,   // how far the ring is filled -> the owner
  acknowledge,    // how far an owner has read -> who asked
  recovery,       // all that a host wrote -> its next first process
  superblock,     // magic and epoch -> everybody
  departed,       // lines that must not lie dirty when their host is gone: for machines that take its id over unfenced
  statistics,     // names and counters: for people to look at, no protocol depends on them
  kCount
};
inline constexpr std::size_t kPoints = static_cast<std::size_t>(Point::kCount);

inline constexpr std::array<const char*, kPoints> kPointNames = {
    "lane",     "record",  "ready",         "closing",   "reopen",      "writing", "freed",      "void_slot", "payload",
    "stamp",    "stamp_lowered", "renewal", "heartbeat", "lease_epoch", "identity",   "claim",     "header",
    "release",  "request", "request_head",  "acknowledge", "recovery", "superblock", "departed", "statistics",
};

/// The steps that a point can consist of. `check`: a value that is looked at again.
enum class Step : std::uint8_t {
  publish_write_back,
  publish_fence,
  confirm_flush,
  confirm_fence,
  confirm_load,
  confirm_last_fence,
  observe_flush,
  observe_fence,
  check,
  kCount
};
inline constexpr std::size_t kSteps = static_cast<std::size_t>(Step::kCount);

inline constexpr std::array<const char*, kSteps> kStepNames = {
    "publish: write back", "publish: fence",     "confirm: flush", "confirm: fence", "confirm: load back",
    "confirm: last fence", "observe: flush",     "observe: fence", "check",
};

}  // namespace beluga
