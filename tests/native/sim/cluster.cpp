#include "cluster.hpp"

#include <algorithm>
#include <cstring>
#include <map>

#include "geometry.hpp"
#include "walk.hpp"

namespace sim {

using namespace beluga;

namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t up(std::uint64_t n, std::uint64_t to) { return (n + to - 1) / to * to; }

/// A superblock as small as the protocols allow: far smaller than format makes them.
Superblock plan(const ClusterShape& shape) {
  Superblock sb{};
  sb.magic = kMagic;
  sb.version = kFormatVersion;
  sb.header_bytes = kSuperblockBytes;
  sb.epoch = 1;
  sb.max_hosts = shape.hosts;
  sb.device_count = 1;
  sb.extents = shape.extents;
  sb.slots_per_extent = shape.slots_per_extent;
  sb.min_slot = shape.slot_bytes;
  sb.extent_size = std::uint64_t{shape.slot_bytes} * shape.slots_per_extent;
  sb.buckets = shape.buckets;
  sb.record_bytes = 64;
  sb.visibility = VisibilityMode::noncoherent;
  sb.payload_visibility = PayloadVisibility::flush;
  sb.max_lease_ms = 4 * shape.lease_ms;
  std::uint64_t at = kSuperblockBytes;
  sb.hosts_offset = at;
  sb.host_stride = kClaimsOffset + up(shape.extents, kLine);
  at += sb.host_stride * shape.hosts;
  sb.index_offset = at;
  at += std::uint64_t{sb.buckets} * shape.hosts * kLine;
  sb.headers_offset = at;
  at += shape.extents * kLine;
  const std::uint64_t slots = std::uint64_t{shape.extents} * shape.slots_per_extent;
  sb.hot_offset = at;
  at += slots * kLine;
  sb.cold_offset = at;
  at += slots * sb.record_bytes;
  sb.stamps_offset = at;
  // A host's stamps lie on lines of their own, as format sees to it.
  at += up(slots * 4, kLine) * shape.hosts;
  sb.metadata_bytes = up(at, kPage);
  sb.devices[0] = {sb.metadata_bytes + sb.extent_size * shape.extents, sb.metadata_bytes, 0, shape.extents, 0};
  sb.crc = superblock_crc(sb);
  return sb;
}

/// One for each host and size of pool, used by one world after the other: the processes of worlds that have ended hold
/// on to them for ever.
std::shared_ptr<ControlBlock> control_block(const std::string& directory, const PoolMemory& memory, std::uint32_t host) {
  static std::map<std::string, std::shared_ptr<ControlBlock>> blocks;
  const std::string path = directory + "/control" + std::to_string(host) + "-" + std::to_string(memory.sb().extents) +
                           "x" + std::to_string(memory.sb().slots_per_extent);
  std::shared_ptr<ControlBlock>& block = blocks[path];
  if (!block) block = std::make_shared<ControlBlock>(path, memory, 0600);
  return block;
}

}  // namespace

AttachOptions attach_options(const ClusterShape& shape, std::uint32_t host) {
  AttachOptions options;
  options.host_id = host;
  options.heartbeat_ms = shape.heartbeat_ms;
  options.dead_after_ms = shape.dead_after_ms;
  options.lease_ms = shape.lease_ms;
  options.lock_timeout_ms = shape.heartbeat_ms;
  return options;
}

void ClusterShape::size(Config& config) const {
  const Superblock sb = plan(*this);
  config.device_bytes = up(sb.devices[0].bytes, kPage);
  config.payload_begin = sb.devices[0].payload_offset;
  config.payload_end = sb.devices[0].bytes;
}

ClusterShape ClusterShape::paced(const Config& config) const {
  // A beat is a few hundred steps of each of some ten fibers; a lease lasts for many beats.
  ClusterShape shape = *this;
  shape.heartbeat_ms = std::max<std::uint32_t>(4, config.step_ns_max / 500);
  shape.dead_after_ms = shape.heartbeat_ms * 15;
  shape.lease_ms = shape.heartbeat_ms * 8;
  return shape;
}

Cluster::Cluster(World& world, const ClusterShape& shape, const std::string& directory)
    : world_(world),
      shape_(shape),
      memory_(std::make_shared<PoolMemory>(world.base(), plan(shape))),
      oracle_(world, *memory_, shape.hosts + shape.spares) {
  const Superblock& sb = memory_->sb();
  CHECK(slot_bytes(sb, sb.slots_per_extent) == shape.slot_bytes);
  CHECK((std::uint64_t{memory_->slot_limit()} * 4) % kLine == 0);
  // Outside of fibers, stores act on the device itself.
  store_words<V>(world.base(), &sb, sizeof(sb));
  world.trace().device_name = [sb](std::uint64_t offset) { return name_of(sb, offset); };
  for (std::uint32_t h = 0; h < shape.hosts + shape.spares; ++h) {
    machines_.push_back(&world.add_host());
    controls_.push_back(control_block(directory, *memory_, h));
    controls_[h]->header().ready = 0;
    controls_[h]->reserve_slots(0, memory_->slot_limit());
  }
  for (std::uint32_t k = 0; k < shape.keys; ++k) {
    const std::string record = "key " + std::to_string(k);
    KeyBatch batch;
    batch.add(std::as_bytes(std::span(record.data(), record.size())));
    keys_.push_back(std::move(batch));
  }
}

std::string Cluster::name_of(const Superblock& sb, std::uint64_t offset) {
  const auto n = [](std::uint64_t value) { return std::to_string(value); };
  const std::uint64_t payload = sb.devices[0].payload_offset;
  if (offset >= payload) {
    const std::uint64_t at = offset - payload;
    return "payload[slot " + n(at / sb.min_slot) + "]+" + n(at % sb.min_slot);
  }
  const std::uint64_t slots = std::uint64_t{sb.extents} * sb.slots_per_extent;
  if (offset >= sb.stamps_offset) {
    const std::uint64_t index = (offset - sb.stamps_offset) / 4;
    return "stamp[host " + n(index / slots) + "][" + n(index % slots) + "]";
  }
  if (offset >= sb.cold_offset) {
    return "cold[" + n((offset - sb.cold_offset) / sb.record_bytes) + "]+" + n((offset - sb.cold_offset) % sb.record_bytes);
  }
  if (offset >= sb.hot_offset) {
    static constexpr const char* kFields[] = {"word", "print_lo", "print_hi", "size", "offset", "checksum", "crc", "born"};
    return "hot[" + n((offset - sb.hot_offset) / kLine) + "]." + kFields[(offset - sb.hot_offset) % kLine / 8];
  }
  if (offset >= sb.headers_offset) return "header[" + n((offset - sb.headers_offset) / kLine) + "]";
  if (offset >= sb.index_offset) {
    const std::uint64_t lane = (offset - sb.index_offset) / kLine;
    return "lane[" + n(lane / sb.max_hosts) + "] of host " + n(lane % sb.max_hosts) + " entry " +
           n((offset - sb.index_offset) % kLine / 8);
  }
  if (offset >= sb.hosts_offset) {
    const std::uint64_t h = (offset - sb.hosts_offset) / sb.host_stride;
    const std::uint64_t in = (offset - sb.hosts_offset) % sb.host_stride;
    const std::string host = "[" + n(h) + "]";
    if (in < 64) return "identity" + host + "+" + n(in);
    if (in < 128) return "heartbeat" + host + "+" + n(in - 64);
    if (in < offsetof(HostPage, ring_head)) return "name" + host;
    if (in < offsetof(HostPage, counters)) return "ring_head" + host;
    if (in < offsetof(HostPage, acknowledged)) return "counters" + host;
    if (in < offsetof(HostPage, ring)) return "acknowledged" + host + "[" + n((in - offsetof(HostPage, acknowledged)) / 8) + "]";
    if (in < kClaimsOffset) return "ring" + host + "[" + n((in - offsetof(HostPage, ring)) / sizeof(OwnerRequest)) + "]";
    return "claim" + host + "[" + n(in - kClaimsOffset) + "]";
  }
  return "superblock+" + n(offset);
}

Node& Cluster::start_on(std::uint32_t number, std::uint32_t host, std::function<void(Node&)> body, bool certain) {
  Node& node = *nodes_.emplace_back(std::make_unique<Node>());
  node.machine = number;
  node.host = host;
  node.process = &world_.add_process(machine(number));
  world_.spawn(
      *node.process, "main" + std::to_string(host),
      [this, &node, body = std::move(body), certain] { main_fiber(node, body, certain); });
  return node;
}

void Cluster::thread(Node& node, const char* name, std::function<void(Node&)> body) {
  world_.spawn(*node.process, name, [&node, body = std::move(body)] { body(node); });
}

void Cluster::main_fiber(Node& node, const std::function<void(Node&)>& body, bool certain) {
  if (!attach(node, certain)) return;
  node.usable = true;
  world_.spawn(*node.process, "beat" + std::to_string(node.host), [this, &node] { heartbeat_fiber(node); }, Daemon::yes);
  body(node);
}

/// What Membership does with file locks: one process of a host at a time, entries of the dead are reused, and the first
/// process makes the control block anew.
bool Cluster::attach(Node& node, bool certain) {
  ControlBlock& control = *controls_[node.machine];
  const auto starting = [&](const Node& other) {
    return other.machine == node.machine && &other != &node && other.alive() && other.attaching && !other.usable && !other.closed;
  };
  while (std::any_of(nodes_.begin(), nodes_.end(), [&](const auto& other) { return starting(*other); })) {
    Machine::sleep_us(shape_.heartbeat_ms * 200);
  }
  node.attaching = true;  // alone, as under the lock of the control block
  const bool first = std::none_of(nodes_.begin(), nodes_.end(), [&](const auto& other) {
    return other.get() != &node && other->machine == node.machine && other->alive() && other->usable && !other->closed;
  });
  if (first) {
    // What the dead have in flight ends first.
    for (std::size_t i = 0; i < nodes_.size(); ++i) {  // nodes may be added meanwhile
      const Node& other = *nodes_[i];
      while (&other != &node && other.machine == node.machine && other.process && !other.alive() &&
             !world_.gone(*other.process)) {
        Machine::sleep_us(100);
      }
    }
    control.reset(*memory_, node.host);
    control.header().machine[0] = static_cast<std::uint8_t>(1 + node.machine);
    control.header().nonce = 1'000'000 + nodes_.size() * 64 + node.machine;  // not random: the same seed, the same run
    world_.forget_locks(&control.header(), sizeof(ControlHeader));
  }
  std::uint32_t entry = 0;
  for (std::uint32_t p = 0; p < kMaxProcesses && entry == 0; ++p) {
    const bool in_use = control.process(p).state != 0;
    const auto owner = std::find_if(nodes_.begin(), nodes_.end(), [&](const auto& other) {
      return other.get() != &node && other->machine == node.machine && other->entry == p + 1 && other->process &&
             (other->alive() || !world_.gone(*other->process));
    });
    if (in_use && owner != nodes_.end()) continue;
    if (!in_use && owner != nodes_.end() && (*owner)->alive()) continue;
    entry = p + 1;
  }
  node.entry = entry;
  node.pool = new Pool(memory_, controls_[node.machine], attach_options(shape_, node.host), entry);
  try {
    if (first) {
      node.pool->start_host(certain, 0);
    } else {
      node.pool->hosts.refresh_active();
      node.pool->upkeep.sweep(entry, shape_.heartbeat_ms);
    }
  } catch (const std::exception& error) {
    node.refusal = error.what();
    node.closed = true;
    return false;
  }
  V::store(&control.process(entry - 1).state, std::uint32_t{1});
  node.pool->beat();
  oracle_.beat(node.machine);
  return true;
}

void Cluster::heartbeat_fiber(Node& node) {
  for (;;) {
    Machine::sleep_us(shape_.heartbeat_ms * 1000);
    if (node.closed) return;
    const std::uint64_t began = world_.steps();
    if (node.pool->beat() != Pool::Beat::fine) {
      node.closed = true;
      oracle_.forget(node);
      return;
    }
    oracle_.operation_ended();
    oracle_.beat(node.machine, began);
    bury_dead(node);
    oracle_.operation_ended();
  }
}

void Cluster::bury_dead(Node& node) {
  ControlBlock& control = *controls_[node.machine];
  for (std::size_t i = 0; i < nodes_.size(); ++i) {  // nodes may be added meanwhile
    const Node& dead = *nodes_[i];
    if (dead.machine != node.machine || dead.alive() || !dead.process || !world_.gone(*dead.process)) continue;
    if (dead.entry == 0 || dead.entry == node.entry || control.process(dead.entry - 1).state == 0) continue;
    const bool reused = std::any_of(nodes_.begin(), nodes_.end(), [&](const auto& other) {
      return other->alive() && other->machine == node.machine && other->entry == dead.entry;
    });
    if (reused) continue;
    if (node.pool->upkeep.sweep(dead.entry, 1)) V::store(&control.process(dead.entry - 1).state, std::uint32_t{0});
  }
}

// ---- what users of a pool do

bool Cluster::put(Node& node, std::uint32_t k, Write how) {
  node.pool->hosts.keep_active_fresh();
  if (node.pool->index.find_one(keys_[k].prints[0])) return true;
  Slot slot;
  if (!reserve(node, slot)) return false;
  fill(k, slot, how);
  if (world_.random().one_in(16)) {
    abandon(node, slot);
    return false;
  }
  return commit(node, k, slot, how);
}

/// What Store asks before it changes anything.
bool Cluster::may_write(Node& node) {
  if (!node.closed && node.pool->standing() == Pool::Beat::fine) return true;
  node.closed = true;
  oracle_.forget(node);
  return false;
}

bool Cluster::reserve(Node& node, Slot& slot) {
  if (!may_write(node)) return false;
  node.pool->hosts.keep_active_fresh();
  const bool had = node.pool->eviction.allocate(shape_.slot_bytes, slot) == Refusal::none;
  oracle_.operation_ended();
  return had;
}

void Cluster::fill(std::uint32_t k, const Slot& slot, Write how) {
  std::vector<std::uint64_t> bytes(shape_.slot_bytes / 8);
  for (std::uint32_t i = 0; i < bytes.size(); ++i) bytes[i] = Oracle::word(k, slot.number, slot.generation, i);
  switch (how) {
    case Write::streamed:
      world_.nt_store(slot.address, bytes.data(), shape_.slot_bytes);
      Machine::store_fence();  // as the copy engine does
      break;
    case Write::cached:
      world_.cached_store(slot.address, bytes.data(), shape_.slot_bytes);
      break;
    case Write::dma:
      world_.dma_write(slot.address, bytes.data(), shape_.slot_bytes);
      break;
  }
}

bool Cluster::commit(Node& node, std::uint32_t k, const Slot& slot, Write how) {
  if (!may_write(node) || !node.pool->formatted_as_attached()) return false;
  const ChunkDescription chunk{keys_[k].prints[0], keys_[k].record(0), {}, shape_.slot_bytes, k};
  const PutResult result = node.pool->publication.publish(
      slot, chunk, how == Write::streamed ? PayloadWrite::streamed : PayloadWrite::cached, nullptr);
  if (result == PutResult::stored) oracle_.committed(k, slot.number, slot.generation);
  oracle_.operation_ended();
  return result != PutResult::refused;
}

void Cluster::abandon(Node& node, const Slot& slot) {
  node.pool->slots.abandon(slot.number, slot.generation);
  oracle_.operation_ended();
}

bool Cluster::lookup(Node& node, std::uint32_t k) {
  const std::uint64_t since = world_.steps();
  Found found;
  {
    const NoLocks readers_never_lock;
    node.pool->hosts.keep_active_fresh();
    found = node.pool->index.find_one(keys_[k].prints[0]);
  }
  if (found) {
    oracle_.found(k, found.slot, generation_of(found.word), since);
  } else {
    oracle_.missed("a lookup", k, since, false);
  }
  return static_cast<bool>(found);
}

bool Cluster::read(Node& node, std::uint32_t k, bool dma, std::uint32_t linger_us) {
  const std::shared_ptr<Lease> held = lease(node, k);
  if (!held) return false;
  if (linger_us) Machine::sleep_us(linger_us);
  const bool valid = transfer(node, k, *held, dma);
  release(node, held);
  return valid;
}

std::shared_ptr<Lease> Cluster::lease(Node& node, std::uint32_t k) {
  Pool& pool = *node.pool;
  const std::uint64_t since = world_.steps();
  // A host whose heartbeat is late may not lease: that is its fence.
  const bool fenced = pool.context.late();
  const std::uint64_t epoch = pool.context.header().lease_epoch;
  const std::uint64_t began = Machine::now_ms();
  const std::uint64_t last_beat = pool.context.header().last_beat;
  std::vector<std::shared_ptr<Lease>> leases;
  {
    const NoLocks readers_never_lock;
    pool.hosts.keep_active_fresh();
    pool.leases.acquire(keys_[k].prints, [&](std::size_t i) { return keys_[k].record(i); }, false, leases);
  }
  if (leases[0]) {
    oracle_.leased(node, leases[0]);
  } else {
    // A lease that takes a good part of its own time may have ended before it was one.
    const bool in_time = !fenced && Machine::now_ms() <= last_beat + shape_.dead_after_ms / 2 && epoch == pool.context.header().lease_epoch &&
                         Machine::now_ms() - began <= shape_.lease_ms / 4;
    if (in_time) oracle_.missed("a lease", k, since, true);
  }
  return leases[0];
}

bool Cluster::transfer(Node& node, std::uint32_t k, Lease& lease, bool dma) {
  Pool& pool = *node.pool;
  std::vector<std::uint64_t> bytes(lease.size / 8);
  std::byte* from = memory_->payload(memory_->extent_of(lease.slot)) + lease.offset;
  if (pool.leases.usable(lease)) oracle_.using_lease(node, lease);
  if (dma) {
    world_.dma_read(bytes.data(), from, bytes.size() * 8);
  } else {
    for (std::uint32_t at = 0; at < bytes.size(); at += kLine / 8) {
      world_.read(bytes.data() + at, from + at * 8, std::min<std::size_t>(kLine, (bytes.size() - at) * 8));
      if (pool.leases.usable(lease)) oracle_.using_lease(node, lease);
    }
  }
  const bool valid = pool.leases.valid(lease);
  for (std::uint32_t i = 0; valid && i < bytes.size(); ++i) {
    const std::uint64_t right = Oracle::word(k, lease.slot, lease.generation, i);
    if (bytes[i] == right) continue;
    char text[160];
    std::snprintf(text, sizeof(text), "G1: host %u reads word %u of slot %u generation %llu as %016llx, not %016llx", node.host,
                  i, lease.slot, static_cast<unsigned long long>(lease.generation),
                  static_cast<unsigned long long>(bytes[i]), static_cast<unsigned long long>(right));
    world_.fail(text);
    break;
  }
  return valid;
}

void Cluster::release(Node& node, const std::shared_ptr<Lease>& lease) {
  oracle_.released(lease.get());
  node.pool->leases.release(lease);
}

bool Cluster::evict_some(Node& node) {
  if (!may_write(node)) return false;
  const bool freed = node.pool->eviction.evict_bytes(shape_.slot_bytes) != 0;
  oracle_.operation_ended();
  return freed;
}

void Cluster::remove(Node& node, std::uint32_t k) {
  if (!may_write(node)) return;
  node.pool->hosts.keep_active_fresh();
  std::uint32_t patience_ms = shape_.heartbeat_ms;
  node.pool->remove(keys_[k].prints[0], patience_ms);
  oracle_.removed(k, node.machine);
  oracle_.operation_ended();
}

// ---- the end of machines, and of runs

void Cluster::kill(Node& node) {
  oracle_.forget(node);
  world_.kill_process(*node.process);
}

void Cluster::kill_all(std::uint32_t number) {
  for (const auto& node : nodes_) {
    if (node->machine == number && node->alive()) kill(*node);
  }
}

void Cluster::power_cycle(std::uint32_t number) {
  for (const auto& node : nodes_) {
    if (node->machine == number && node->alive()) oracle_.forget(*node);
  }
  world_.kill_host(machine(number));
  oracle_.lost_power(number);
  world_.boot_host(machine(number));
  controls_[number]->header().ready = 0;
  // /dev/shm is empty after a boot: nobody's entries are left.
  for (std::uint32_t p = 0; p < kMaxProcesses; ++p) controls_[number]->process(p).state = 0;
}

void Cluster::format(std::uint32_t number) {
  world_.spawn(world_.add_process(machine(number)), "format", [this] {
    auto* shared = const_cast<Superblock*>(memory_->shared_superblock());
    Superblock sb = memory_->sb();
    V::store(&shared->epoch, sb.epoch + 1);
    V::store(&shared->magic, kMagicPartial);
    V::confirm(Point::superblock, shared, kLine);
    Machine::sleep_us(2 * shape_.dead_after_ms * 1'000);
    oracle_.formatted();
    sb.epoch += 2;
    sb.magic = kMagicPartial;
    sb.crc = superblock_crc(sb);
    const std::vector<std::byte> zeros(kLine);
    for (std::uint64_t at = kSuperblockBytes; at < sb.metadata_bytes; at += kLine) {
      world_.nt_store(world_.base() + at, zeros.data(), kLine);
    }
    store_words<V>(shared, &sb, sizeof(sb));
    V::confirm(Point::superblock, shared, sb.metadata_bytes);
    oracle_.formatted();  // once more: what an old user wrote meanwhile is gone, too
    sb.magic = kMagic;
    V::store(&shared->magic, kMagic);
    V::confirm(Point::superblock, shared, kLine);
    former_memory_ = memory_;
    memory_ = std::make_shared<PoolMemory>(world_.base(), sb);
  });
}

void Cluster::rest_and_check() {
  stop();
  for (const auto& machine : machines_) {
    if (machine->paused && machine->clock_stops) oracle_.clock_stood(machine->id);
    world_.resume_host(*machine);
  }
  for (const auto& node : nodes_) {
    if (node->alive() && node->process->paused) world_.resume_process(*node->process);
  }
  // Every host that ever joined comes back, so that what its dead left is put right.
  for (std::uint32_t h = 0; h < shape_.hosts; ++h) {
    const bool joined = std::any_of(nodes_.begin(), nodes_.end(), [&](const auto& node) { return node->host == h; });
    const bool up = std::any_of(nodes_.begin(), nodes_.end(), [&](const auto& node) {
      return node->host == h && node->alive() && !node->closed;
    });
    if (joined && !up) start(h, [&](Node&) {});
  }
  const std::uint64_t wanted_ms = 4 * shape_.dead_after_ms + 2 * shape_.lease_ms;
  const std::uint64_t until = world_.time_ns() + wanted_ms * 1'000'000;
  world_.run_until([&] { return world_.time_ns() >= until; }, 3'000'000);
  if (world_.failed()) return;
  for (std::uint32_t h = 0; h < shape_.hosts; ++h) {
    const auto node = std::find_if(nodes_.begin(), nodes_.end(), [&](const auto& n) {
      return n->host == h && n->alive() && n->usable && !n->closed;
    });
    if (node == nodes_.end()) continue;
    bool done = false;
    world_.spawn(*(*node)->process, "check" + std::to_string(h), [&, n = node->get()] {
      check_space(*n);
      done = true;
    });
    world_.run_until([&] { return done; }, 1'000'000);
    if (world_.failed()) return;
    if (!done) world_.fail("G5: the final check of host " + std::to_string(h) + " does not end");
  }
}

void Cluster::check(Node& node) {
  Pool& pool = *node.pool;
  Walk<V> walk(pool.context, pool.index, pool.hosts, pool.slots, pool.extents);
  const CheckReport report = walk.check();
  if (report.problems) world_.fail("G4: host " + std::to_string(node.host) + ": " + report.errors.front());
}

/// No lost space: every slot of an own extent is free or a chunk that the index knows, and every record is sound.
void Cluster::check_space(Node& node) {
  Pool& pool = *node.pool;
  check(node);
  for (std::uint32_t e = 0; e < memory_->sb().extents; ++e) {
    const ExtentControl& control = pool.context.control->extent(e);
    if (!control.owned) continue;
    for (std::uint32_t i = 0; i < control.slots; ++i) {
      const std::uint32_t slot = memory_->first_slot(e) + i;
      const std::uint64_t word = V::load(&memory_->hot(slot)->word);
      const SlotState state = state_of(word);
      if (state == SlotState::free || state == SlotState::ready) continue;
      world_.fail("G4: slot " + std::to_string(slot) + " is lost to host " + std::to_string(node.host) + " in state " +
                  std::to_string(static_cast<int>(state)));
    }
    if (control.draining) world_.fail("G4: extent " + std::to_string(e) + " drains for ever");
  }
}

}  // namespace sim
