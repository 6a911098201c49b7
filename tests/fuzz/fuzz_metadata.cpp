// Arbitrary metadata against everything that reads it: two hosts, three processes, and a neighbour who writes into
// the pool between any two of their loads. An input is a program of operations and damage. Whatever it does, a
// read gives what was stored under its key or a miss, and nothing reads or writes outside the pool.

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "content.hpp"
#include "damage.hpp"
#include "format.hpp"
#include "guard_pages.hpp"
#include "input.hpp"
#include "member.hpp"
#include "scratch_directory.hpp"
#include "tally.hpp"

namespace fuzz {
namespace {

constexpr std::uint32_t kHosts = 2;
constexpr std::uint32_t kMembers = 3;  // two processes of host 0, one of host 1
constexpr std::uint32_t kMaxSteps = 200;
constexpr std::uint32_t kMaxHeld = 24;

[[noreturn]] void broken(const char* what, std::uint32_t key) {
  std::fprintf(stderr, "broken promise: %s (key %u)\n", what, key);
  std::abort();
}

/// FUZZ_TRACE=1 shows what an input does, step by step.
const bool traced = std::getenv("FUZZ_TRACE") != nullptr;

template <class... Args>
void trace(const char* format, Args... args) {
  if (!traced) return;
  std::fprintf(stderr, format, args...);
  std::fputc('\n', stderr);
}

/// A formatted pool with some chunks in it, and its image: every input starts from it.
struct Stage {
  Stage() {
    directory = scratch_directory();
    const std::string path = directory + "/pool";
    FormatOptions options;
    options.max_hosts = kHosts;
    options.visibility = Hostile::mode;
    options.extent_size = 64 << 10;
    options.chunk_hint = 64 << 10;
    const std::string paths[] = {path};
    format_pool(paths, kBytes, options);
    // Until there is room around it.
    std::vector<std::shared_ptr<PoolMemory>> crowded;
    while (!guard || !guard->whole()) {
      crowded.push_back(pool);
      pool = open_pool(paths, 1000);
      guard = std::make_unique<GuardPages>(*pool->devices()[0]);
    }
    for (std::uint32_t h = 0; h < kHosts; ++h) {
      control[h] = std::make_shared<ControlBlock>(directory + "/host" + std::to_string(h), *pool, 0600);
    }
    // Everything stays mapped; nothing needs the names.
    ::unlink(path.c_str());
    for (std::uint32_t h = 0; h < kHosts; ++h) ::unlink((directory + "/host" + std::to_string(h)).c_str());
    ::rmdir(directory.c_str());
    Member first(pool, control[0], attach_options(0), 1, true);
    Member second(pool, control[1], attach_options(1), 1, true);
    for (std::uint32_t k = 0; k < 16; ++k) store(k % 4 == 3 ? second : first, k);
    image.resize(pool->devices()[0]->size());
    std::memcpy(image.data(), pool->devices()[0]->base(), image.size());
  }

  void store(Member& member, std::uint32_t key) {
    Slot slot;
    const auto payload = content.payload(key);
    if (member.eviction.allocate(payload.size(), slot) != Refusal::none) std::abort();
    std::memcpy(slot.address, payload.data(), payload.size());
    const ChunkDescription chunk{content.print(key), content.record(key), {}, payload.size(), 0};
    if (member.publication.publish(slot, chunk, PayloadWrite::cached, nullptr) != PutResult::stored) std::abort();
  }

  static AttachOptions attach_options(std::uint32_t host) {
    AttachOptions options;
    options.host_id = host;
    options.lease_ms = 1000;
    options.dead_after_ms = 2000;
    options.lock_timeout_ms = 10;
    return options;
  }

  void restore() { std::memcpy(pool->devices()[0]->base(), image.data(), image.size()); }

  static constexpr std::uint64_t kBytes = (64 << 10) * 5;
  std::string directory;
  Content content;
  std::shared_ptr<PoolMemory> pool;
  std::unique_ptr<GuardPages> guard;
  std::shared_ptr<ControlBlock> control[kHosts];
  std::vector<std::byte> image;
};

Stage& stage() {
  static Stage* const the = new Stage;
  return *the;
}

/// One input's run.
class Play final : public Neighbour {
 public:
  explicit Play(Input in) : in_(in), stage_(stage()), damager_(*stage_.pool, stage_.content) {
    damager_.reset();
  }

  void run() {
    stage_.restore();
    neighbour = this;
    loads_to_strike = 0;
    for (std::uint32_t step = 0; step < kMaxSteps && !in_.empty(); ++step) act();
    loads_to_strike = 0;
    pending_.clear();
    settle();
  }

  void strike() override {
    const Damage damage = pending_.front().second;
    pending_.pop_front();
    loads_to_strike = pending_.empty() ? 0 : pending_.front().first;
    hurt(damage);
  }

 private:
  void hurt(const Damage& damage) {
    trace("  damage %s", damager_.describe(damage).c_str());
    damager_.apply(damage);
  }

  struct Held {
    std::uint32_t member;
    std::uint32_t key;
    std::shared_ptr<Lease> lease;
  };
  struct Reserved {
    std::uint32_t member;
    std::uint32_t key;
    Slot slot;
  };

  Member& member(std::uint32_t m) {
    if (!members_[m]) {
      // A second process finds the host recovered by the first.
      if (m == 1) member(0);
      const std::uint32_t host = m == 2;
      members_[m] = std::make_unique<Member>(stage_.pool, stage_.control[host], Stage::attach_options(host),
                                             m == 1 ? 2 : 1, m != 1);
    }
    return *members_[m];
  }

  void act() {
    const std::uint8_t what = in_.byte();
    const std::uint32_t m = what >> 5 & 3;
    try {
      act(what & 31, m == 3 ? 0 : m);
    } catch (const Error&) {
      // A refusal, said in words.
    }
  }

  void act(std::uint32_t what, std::uint32_t m) {
    if (what > 5) trace("process %u: operation %u", m, what);
    switch (what) {
      case 0:
      case 1:
      case 2:
      case 3:
        hurt(damager_.decode(in_));
        return;
      case 4:
      case 5: {
        const std::uint64_t loads = 1 + in_.take<std::uint16_t>() % 2000;
        pending_.emplace_back(loads, damager_.decode(in_));
        trace("  damage in %u loads", static_cast<unsigned>(loads));
        if (loads_to_strike == 0) loads_to_strike = loads;
        return;
      }
      case 6:
      case 7:
        lease(m, in_.below(kKeys), 1);
        return;
      case 8:
        lease(m, in_.below(kKeys), 1 + in_.below(12));
        return;
      case 9:
        if (!held_.empty()) judge(held_[in_.below(static_cast<std::uint32_t>(held_.size()))]);
        return;
      case 10:
        if (!held_.empty()) release(in_.below(static_cast<std::uint32_t>(held_.size())));
        return;
      case 11:
      case 12:
        put(m, in_.below(kKeys), in_.byte());
        return;
      case 13:
        reserve(m, in_.below(kKeys));
        return;
      case 14:
        if (!reserved_.empty()) commit(in_.below(static_cast<std::uint32_t>(reserved_.size())), in_.byte());
        return;
      case 15:
        if (!reserved_.empty()) abandon(in_.below(static_cast<std::uint32_t>(reserved_.size())));
        return;
      case 16:
        remove(m, in_.below(kKeys));
        return;
      case 17: {
        const auto& prints = stage_.content.keys().prints;
        std::vector<Found> found(prints.size());
        member(m).index.find(prints, found, in_.byte() & 1);
        for (const Found& f : found) {
          if (f) member(m).leases.touch(f.slot);
        }
        return;
      }
      case 18:
        member(m).upkeep.scrub(1 + in_.below(stage_.pool->slot_limit()));
        return;
      case 19:
        member(m).walk.check();
        return;
      case 20:
        list(m);
        return;
      case 21:
        member(m).walk.occupancy();
        return;
      case 22:
        member(m).walk.hosts();
        return;
      case 23:
        member(m).eviction.evict_bytes(in_.take<std::uint16_t>());
        return;
      case 24:
        member(m).slots.release_empty();
        return;
      case 25:
        bury(m, 1 + in_.below(33));
        return;
      case 26:
        // One that finds the pool formatted anew, or its host id taken, stops for ever.
        if (member(m).beat() != Member::Beat::fine) die(m);
        return;
      case 27:
        now_us += std::uint64_t{in_.take<std::uint16_t>()} * 100;
        return;
      case 28:
        die(m);
        return;
      case 29:
        member(m).leases.drop_all();
        return;
      case 30:
        if (in_.byte() % 8 == 0) member(m).clear();
        return;
      default:
        member(m);
        return;
    }
  }

  void lease(std::uint32_t m, std::uint32_t first, std::uint32_t n) {
    KeyBatch batch;
    std::vector<std::uint32_t> keys;
    for (std::uint32_t i = 0; i < n; ++i) {
      keys.push_back((first + i) % kKeys);
      batch.add(stage_.content.record(keys.back()));
    }
    std::vector<std::shared_ptr<Lease>> out;
    member(m).hosts.keep_active_fresh();
    member(m).leases.acquire(batch.prints, [&](std::size_t i) { return batch.record(i); }, false, out);
    for (std::size_t i = 0; i < out.size(); ++i) {
      if (!out[i]) continue;
      trace("  leased key %u: slot %u, generation %u", keys[i], out[i]->slot, static_cast<unsigned>(out[i]->generation));
      Held held{m, keys[i], out[i]};
      judge(held);
      held_.push_back(std::move(held));
      if (held_.size() > kMaxHeld) release(0);
    }
  }

  /// Reads the chunk as a view does: its bytes count only if the lease is good after the last of them.
  void judge(const Held& held) {
    const Lease& lease = *held.lease;
    const std::byte* at = stage_.pool->payload(stage_.pool->extent_of(lease.slot)) + lease.offset;
    read_.assign(at, at + lease.size);
    const bool same_key = lease.record().size() == stage_.content.record(held.key).size() &&
                          std::memcmp(lease.record().data(), stage_.content.record(held.key).data(),
                                      lease.record().size()) == 0;
    if (!member(held.member).leases.valid(*held.lease)) return;
    if (!same_key) broken("a lease on another key", held.key);
    if (damager_.forged(held.key)) return;
    if (!stage_.content.right(held.key, read_)) broken("wrong bytes", held.key);
  }

  void release(std::uint32_t i) {
    member(held_[i].member).leases.release(held_[i].lease);
    held_.erase(held_.begin() + i);
  }

  void put(std::uint32_t m, std::uint32_t key, std::uint8_t how) {
    if (reserve(m, key)) commit(static_cast<std::uint32_t>(reserved_.size()) - 1, how);
  }

  bool reserve(std::uint32_t m, std::uint32_t key) {
    if (reserved_.size() >= kMaxHeld) return false;
    Slot slot;
    const auto payload = stage_.content.payload(key);
    member(m).hosts.keep_active_fresh();
    if (member(m).eviction.allocate(payload.size(), slot) != Refusal::none) return false;
    if (slot.capacity < payload.size()) broken("a slot that is too small", key);
    reserved_.push_back({m, key, slot});
    trace("  reserved slot %u, generation %u, at %u of its extent, %u bytes for key %u", slot.number,
          static_cast<unsigned>(slot.generation), static_cast<unsigned>(slot.offset),
          static_cast<unsigned>(payload.size()), key);
    // Half now, half at the commit: whoever else believes to own the slot writes in between.
    std::memcpy(slot.address, payload.data(), payload.size() / 2);
    return true;
  }

  void commit(std::uint32_t i, std::uint8_t how) {
    const Reserved one = reserved_[i];
    reserved_.erase(reserved_.begin() + i);
    const auto payload = stage_.content.payload(one.key);
    const std::size_t half = payload.size() / 2;
    std::memcpy(one.slot.address + half, payload.data() + half, payload.size() - half);
    std::shared_ptr<Lease> lease;
    const auto meta = stage_.content.payload(6).first(how % 64);
    Member& process = member(one.member);
    if (!process.publication.reserved(one.slot)) {
      process.slots.abandon(one.slot.number, one.slot.generation);
      return;
    }
    const ChunkDescription chunk{stage_.content.print(one.key), stage_.content.record(one.key), meta, payload.size(),
                                 how};
    if (process.publication.publish(one.slot, chunk, PayloadWrite::cached, how & 64 ? &lease : nullptr) !=
        PutResult::stored) {
      return;
    }
    if (lease) process.leases.complete(lease);
    trace("  stored key %u in slot %u", one.key, one.slot.number);
    if (lease) {
      const Held held{one.member, one.key, lease};
      judge(held);
      held_.push_back(held);
      if (held_.size() > kMaxHeld) release(0);
    }
  }

  void remove(std::uint32_t m, std::uint32_t key) {
    std::uint32_t patience_ms = member(m).asking_patience_ms();
    member(m).hosts.keep_active_fresh();
    member(m).remove(stage_.content.print(key), patience_ms);
  }

  void abandon(std::uint32_t i) {
    const Reserved one = reserved_[i];
    reserved_.erase(reserved_.begin() + i);
    member(one.member).slots.abandon(one.slot.number, one.slot.generation);
  }

  void list(std::uint32_t m) {
    std::uint32_t cursor = in_.byte();
    for (const Entry& entry : member(m).walk.list(cursor, 1000)) {
      if (entry.size > stage_.pool->sb().extent_size) broken("a walk shows a chunk larger than an extent", 0);
    }
  }

  /// What a living process does for the dead of its host.
  void bury(std::uint32_t m, std::uint32_t process) {
    const bool alive = m == 2 ? process == 1 : process <= 2 && members_[process - 1];
    if (alive) return;
    member(m).upkeep.sweep(process, 1);
    if (process <= kMaxProcesses) Hostile::store(&member(m).context.control->process(process - 1).state, std::uint32_t{0});
  }

  /// A process is killed: nothing of it is put in order. The first of a host takes the other one along.
  void die(std::uint32_t m) {
    forget(m);
    if (m == 0) forget(1);
  }
  void forget(std::uint32_t m) {
    std::erase_if(held_, [&](const Held& held) { return held.member == m; });
    std::erase_if(reserved_, [&](const Reserved& one) { return one.member == m; });
    members_[m].reset();
  }

  /// Everybody starts again, on whatever there is: it must be a pool that works.
  void settle() {
    while (!held_.empty()) {
      judge(held_.front());
      release(0);
    }
    for (std::uint32_t m = 0; m < kMembers; ++m) forget(m);
    try {
      for (const std::uint32_t m : {0u, 2u}) {
        trace("process %u starts on what is there", m);
        member(m).upkeep.scrub(stage_.pool->slot_limit());
        member(m).walk.check();
        lease(m, 0, kKeys);
        while (!held_.empty()) release(0);
        put(m, in_.below(kKeys), 0);
      }
    } catch (const Error& error) {
      broken(error.what(), 0);
    }
    for (std::uint32_t m = 0; m < kMembers; ++m) forget(m);
  }

  Input in_;
  Stage& stage_;
  Damager damager_;
  std::unique_ptr<Member> members_[kMembers];
  std::vector<Held> held_;
  std::vector<Reserved> reserved_;
  std::deque<std::pair<std::uint64_t, Damage>> pending_;
  std::vector<std::byte> read_;
};

}  // namespace
}  // namespace fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::tally.count(size);
  fuzz::Play(fuzz::Input(data, size)).run();
  return 0;
}
