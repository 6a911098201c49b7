#include "oracle.hpp"

#include <algorithm>

#include "cluster.hpp"

namespace sim {

namespace {
std::string text(const char* format, auto... args) {
  char buffer[256];
  std::snprintf(buffer, sizeof(buffer), format, args...);
  return buffer;
}
unsigned long long ull(std::uint64_t n) { return n; }
}  // namespace

Oracle::Oracle(World& world, const beluga::PoolMemory& memory, std::uint32_t machines)
    : world_(world),
      memory_(memory),
      copies_(memory.slot_limit()),
      owners_(memory.sb().extents),
      excused_(machines),
      excused_at_(machines) {
  for (std::uint32_t slot = 0; slot < memory.slot_limit(); ++slot) {
    world.watch(world.offset(memory.hot(slot)), 8, [this, slot](const Seen& seen) {
      if (seen.stage == Seen::Stage::visible && seen.bytes == 8) word_written(slot, seen);
    });
  }
  for (std::uint32_t h = 0; h < memory.sb().max_hosts; ++h) {
    for (std::uint32_t e = 0; e < memory.sb().extents; ++e) {
      world.watch(world.offset(memory.claims(h) + e), 1, [this, h, e](const Seen& seen) {
        if (seen.stage == Seen::Stage::visible && seen.bytes == 1)
          claim_written(h, e, static_cast<std::uint8_t>(seen.value));
      });
    }
  }
}

/// SYNC POINT: claim. An owner may write every line of its extent.
void Oracle::claim_written(std::uint32_t host, std::uint32_t extent, std::uint8_t claim) {
  std::uint64_t& owners = owners_[extent];
  const std::uint64_t bit = std::uint64_t{1} << host;
  owners &= ~bit;
  if (claim != static_cast<std::uint8_t>(beluga::Claim::owned)) return;
  if (owners != 0) {
    world_.fail(text("G1: host %u takes extent %u, which host %u owns", host, extent,
                     static_cast<unsigned>(__builtin_ctzll(owners))));
  }
  owners |= bit;
}

void Oracle::formatted() {
  for (Copy& copy : copies_) copy = Copy{};
  for (std::uint64_t& owners : owners_) owners = 0;
}

std::uint64_t Oracle::word(std::uint32_t key, std::uint32_t slot, std::uint64_t generation,
                           std::uint32_t i) {
  return std::uint64_t{key + 1} << 48 | std::uint64_t{slot} << 32 | (generation & 0xffffff) << 8 |
         i;
}

void Oracle::word_written(std::uint32_t slot, const Seen& seen) {
  Copy& copy = copies_[slot];
  const std::uint64_t generation = beluga::generation_of(seen.value);
  if (seen.value == 0) {  // a format wipes it: nothing of these processes ever writes this word
    copy = Copy{};
    return;
  }
  if (generation < copy.generation && !copy.forgotten) {
    world_.fail(text("G1: slot %u goes back from generation %llu to %llu", slot, ull(copy.generation), ull(generation)));
  }
  if (generation != copy.generation) {
    // SYNC POINT: freed. From here on the slot can be written again.
    for (const Held& held : held_) {
      if (held.lease->slot == slot && held.lease->generation < generation && trusted(*held.node, *held.lease)) {
        world_.fail(
            text("G3: slot %u goes on to generation %llu while host %u leases generation %llu",
                 slot, ull(generation), held.node->host, ull(held.lease->generation)));
      }
    }
    copy = Copy{};
    copy.generation = generation;
    copy.host = seen.host;
  }
  copy.host = seen.host;
  switch (beluga::state_of(seen.value)) {
    case beluga::SlotState::ready:
      if (copy.state == State::closing) {
        copy.closer = seen.fiber;
      } else {
        copy.settled_at = 0;
      }
      copy.removed_at = 0;
      copy.was_chunk = true;
      copy.state = State::ready;
      break;
    case beluga::SlotState::closing:
      copy.state = State::closing;
      copy.closed_by = seen.fiber;
      copy.settled_at = 0;
      break;
    default:
      if (beluga::state_of(seen.value) == beluga::SlotState::writing && copy.was_chunk) {
        world_.fail(text("G1: slot %u is written again in generation %llu, in which it was a chunk", slot,
                         ull(copy.generation)));
      }
      copy.state = State::gone;
      copy.settled_at = 0;
      break;
  }
}

void Oracle::committed(std::uint32_t key, std::uint32_t slot, std::uint64_t generation) {
  Copy& copy = copies_[slot];
  if (copy.generation != generation || copy.state == State::gone) return;  // evicted already
  copy.key = key;
  copy.committed_at = world_.steps();
  if (copy.state == State::ready && copy.closer == 0xffff) copy.settled_at = world_.steps();
}

void Oracle::operation_ended() {
  const Fiber* fiber = world_.running();
  if (!fiber) return;
  for (Copy& copy : copies_) {
    if (copy.closer != fiber->id) continue;
    copy.closer = 0xffff;
    if (copy.state == State::ready && copy.committed_at) copy.settled_at = world_.steps();
  }
}

void Oracle::missed(const char* what, std::uint32_t key, std::uint64_t since, bool leasing) {
  const Fiber* fiber = world_.running();
  if (fiber && excused_[fiber->process.host.id]) return;
  ++judged_;
  for (std::uint32_t slot = 0; slot < copies_.size(); ++slot) {
    const Copy& copy = copies_[slot];
    if (copy.key != key || copy.committed_at == 0 || copy.committed_at >= since) continue;
    if (copy.state != State::ready || copy.settled_at == 0 || copy.settled_at >= since) continue;
    world_.fail(
        text("G2: %s misses key %u, committed at step %llu in slot %u (generation %llu) of host %u",
             what, key, ull(copy.committed_at), slot, ull(copy.generation), copy.host));
  }
  static_cast<void>(leasing);
}

void Oracle::removed(std::uint32_t key, std::uint32_t machine) {
  for (Copy& copy : copies_) {
    if (copy.key != key || copy.host != machine || copy.state != State::closing) continue;
    // One that somebody else is evicting may yet stay.
    if (!world_.running() || copy.closed_by != world_.running()->id) continue;
    copy.removed_at = world_.steps();
  }
}

bool Oracle::holds(std::uint32_t key) const {
  return std::any_of(copies_.begin(), copies_.end(), [&](const Copy& copy) {
    return copy.key == key && copy.committed_at && copy.state == State::ready;
  });
}

void Oracle::found(std::uint32_t key, std::uint32_t slot, std::uint64_t generation,
                   std::uint64_t since) {
  const Copy& copy = copies_[slot];
  if (copy.generation != generation) return;
  if (copy.key != ~0u && copy.key != key) {
    world_.fail(text("G1: slot %u of key %u was found for key %u", slot, copy.key, key));
  }
  if (copy.removed_at && copy.removed_at < since) {
    world_.fail(text("G2: key %u was removed at step %llu and is found in slot %u still", key,
                     ull(copy.removed_at), slot));
  }
}

void Oracle::leased(const Node& node, std::shared_ptr<beluga::Lease> lease) {
  held_.push_back({&node, std::move(lease)});
}

void Oracle::released(const beluga::Lease* lease) {
  const auto it = std::find_if(held_.begin(), held_.end(),
                               [&](const Held& h) { return h.lease.get() == lease; });
  if (it == held_.end()) return;
  *it = std::move(held_.back());
  held_.pop_back();
}

void Oracle::forget(const Node& node) {
  std::erase_if(held_, [&](const Held& held) { return held.node == &node; });
}

/// Does the holder, by its own clock and without a look at the pool, believe in its lease?
bool Oracle::trusted(const Node& node, const beluga::Lease& lease) const {
  if (!node.alive() || node.closed || excused_[node.machine]) return false;
  const Host& machine = node.process->host;
  if (machine.paused && machine.clock_stops) return false;
  const std::uint64_t now = world_.now_ms(machine);
  const beluga::ControlHeader& header = node.pool->context.header();
  return !lease.lost.load() && now < lease.expiry.load() && lease.epoch == header.lease_epoch &&
         now <= header.last_beat + node.pool->context.options.dead_after_ms / 2;
}

void Oracle::using_lease(const Node& node, const beluga::Lease& lease) {
  // The process may have been held up since it asked.
  if (!trusted(node, lease)) return;
  ++judged_;
  if (copies_[lease.slot].generation != lease.generation) {
    world_.fail(text("G3: host %u uses generation %llu of slot %u, which has gone on to %llu",
                     node.host, ull(lease.generation), lease.slot,
                     ull(copies_[lease.slot].generation)));
  }
}

void Oracle::lost_power(std::uint32_t host) {
  // A claim that had not left its cache was never made.
  for (std::uint32_t e = 0; e < owners_.size(); ++e) {
    for (std::uint64_t rest = owners_[e]; rest; rest &= rest - 1) {
      const auto h = static_cast<std::uint32_t>(__builtin_ctzll(rest));
      const std::uint8_t claim = world_.truth(*world_.hosts()[host], memory_.claims(h) + e);
      if (h == host && claim != static_cast<std::uint8_t>(beluga::Claim::owned)) owners_[e] &= ~(std::uint64_t{1} << h);
    }
  }
  for (Copy& copy : copies_) {
    if (copy.host != host) continue;
    copy.forgotten = true;
    copy.closer = 0xffff;
    // What was not committed may be gone; what was closing may be ready again.
    if (copy.committed_at == 0 || copy.state == State::closing) copy.settled_at = 0;
    if (copy.committed_at == 0) copy.was_chunk = false;  // nobody has seen it
  }
}

}  // namespace sim
