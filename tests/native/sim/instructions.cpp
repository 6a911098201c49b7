#include <algorithm>
#include <memory>

#include "world.hpp"

/// What fibers do. Each first gives way to the schedule, then acts at once.
namespace sim {

Place World::place_of(const void* p) {
  const auto address = reinterpret_cast<std::uintptr_t>(p);
  if (setting_.device.contains(address))
    return {address, setting_.device.offset(address), Space::device};
  if (!running_) return {address, 0, Space::other};
  for (const Host::Control& control : running_->process.host.control) {
    if (address - control.begin < control.end - control.begin) {
      return {address, control.offset + (address - control.begin), Space::control};
    }
  }
  for (const auto& host : hosts_) {
    for (const Host::Control& control : host->control) {
      if (address - control.begin < control.end - control.begin) {
        fail("host " + std::to_string(running_->process.host.id) +
             " reaches into the control block of host " + std::to_string(host->id));
      }
    }
  }
  return {address, 0, Space::other};
}

void World::record(Did did, const Place& place, std::uint32_t bytes, std::uint64_t value,
                   std::uint64_t other, From from) {
  Event event;
  event.did = did;
  event.space = place.space == Space::other && place.address == 0 ? Space::none : place.space;
  event.from = from;
  event.bytes = static_cast<std::uint8_t>(bytes);
  event.host = running_->process.host.id;
  event.fiber = running_->id;
  event.at = place.space == Space::other ? 0 : place.offset;
  // What lies in a process's own memory may be addresses, which differ from run to run.
  event.value = place.space == Space::other && place.address != 0 ? 0 : value;
  event.other = other;
  setting_.trace.record(event);
}

void World::tell(Seen::Stage stage, const Place& place, std::uint32_t bytes, std::uint64_t value,
                 std::uint64_t before) {
  if (place.space != Space::device || !setting_.watches.any(HostMemory::line_of(place.offset)))
    return;
  setting_.watches.tell(
      {stage, running_->process.host.id, running_->id, bytes, place.offset, value, before});
}

std::uint64_t World::read_place(const Place& place, std::uint32_t bytes, From& from,
                                std::uint64_t& on_device) {
  if (place.space == Space::device) {
    const HostMemory::Answer answer = running_->process.host.memory.read(place.offset, bytes);
    from = answer.from;
    on_device = answer.on_device;
    return answer.value;
  }
  from = From::memory;
  std::uint64_t value = 0;
  std::memcpy(&value, reinterpret_cast<const void*>(place.address), bytes);
  return value;
}

void World::write_place(const Place& place, std::uint32_t bytes, std::uint64_t value) {
  if (place.space == Space::device) {
    running_->process.host.memory.write(place.offset, bytes, &value);
  } else {
    std::memcpy(reinterpret_cast<void*>(place.address), &value, bytes);
  }
}

std::uint64_t World::load(const void* p, std::uint32_t bytes) {
  const Outside outside;
  if (!running_) {
    const Place place = place_of(p);
    std::uint64_t value = 0;
    std::memcpy(&value, place.space == Space::device ? setting_.device.read(place.offset) : p,
                bytes);
    return value;
  }
  instruction();
  const Place place = place_of(p);
  std::uint64_t value = 0;
  std::uint64_t on_device = 0;
  From from = From::store_buffer;
  if (running_->core.idle() || !running_->core.forward(place.address, bytes, value)) {
    value = read_place(place, bytes, from, on_device);
  }
  touched(place);
  record(Did::load, place, bytes, value, on_device, from);
  return value;
}

void World::store(void* p, std::uint32_t bytes, std::uint64_t value) {
  const Outside outside;
  if (!running_) {
    const Place place = place_of(p);
    std::memcpy(place.space == Space::device ? setting_.device.write(place.offset) : p, &value,
                bytes);
    if (place.space == Space::device && acting_ &&
        setting_.watches.any(HostMemory::line_of(place.offset))) {
      setting_.watches.tell(
          {Seen::Stage::visible, acting_->id, 0xffff, bytes, place.offset, value, 0});
    }
    return;
  }
  instruction();
  const Place place = place_of(p);
  record(Did::store, place, bytes, value);
  if (place.space == Space::other) {
    running_->core.drain_stores();
    write_place(place, bytes, value);
    return;
  }
  running_->core.store(place, bytes, value, ++serial_);
  mark_busy(*running_);
  touched(place);
  tell(Seen::Stage::issued, place, bytes, value, 0);
}

bool World::exchange_if(void* p, std::uint32_t bytes, std::uint64_t expected,
                        std::uint64_t desired) {
  const Outside outside;
  if (!running_) {
    if (load(p, bytes) != expected) return false;
    store(p, bytes, desired);
    return true;
  }
  synchronising_instruction();
  running_->core.drain();
  const Place place = place_of(p);
  From from;
  std::uint64_t on_device = 0;
  const std::uint64_t is = read_place(place, bytes, from, on_device);
  touched(place);
  if (is != expected) {
    record(Did::not_exchanged, place, bytes, expected, is,
           from == From::stale_cache ? from : From::none);
    return false;
  }
  record(Did::exchanged, place, bytes, desired, is);
  write_place(place, bytes, desired);
  tell(Seen::Stage::issued, place, bytes, desired, is);
  tell(Seen::Stage::visible, place, bytes, desired, is);
  return true;
}

std::uint64_t World::fetch(void* p, std::uint32_t bytes, std::uint64_t keep, std::uint64_t set) {
  const Outside outside;
  if (!running_) {
    const std::uint64_t was = load(p, bytes);
    store(p, bytes, (was & keep) | set);
    return was;
  }
  synchronising_instruction();
  running_->core.drain();
  const Place place = place_of(p);
  From from;
  std::uint64_t on_device = 0;
  const std::uint64_t was = read_place(place, bytes, from, on_device);
  const std::uint64_t value = (was & keep) | set;
  touched(place);
  record(Did::fetched, place, bytes, value, was);
  write_place(place, bytes, value);
  tell(Seen::Stage::issued, place, bytes, value, was);
  tell(Seen::Stage::visible, place, bytes, value, was);
  return was;
}

void World::write_back(const void* p) {
  const Outside outside;
  if (!running_) return;
  synchronising_instruction();
  const Place place = place_of(p);
  if (place.space != Space::device) return;
  record(Did::write_back, place);
  running_->core.write_back(place);
  mark_busy(*running_);
}

void World::flush(const void* p) {
  const Outside outside;
  if (!running_) return;
  synchronising_instruction();
  const Place place = place_of(p);
  if (place.space != Space::device) return;
  record(Did::flush, place);
  running_->core.flush(place);
  mark_busy(*running_);
  touched(place);
}

void World::load_back(const void* p) {
  const Outside outside;
  if (!running_) return;
  synchronising_instruction();
  const Place place = place_of(p);
  if (place.space != Space::device) return;
  record(Did::load_back, place);
  running_->core.load_back(place);
  mark_busy(*running_);
}

void World::store_fence() {
  const Outside outside;
  if (!running_) return;
  synchronising_instruction();
  record(Did::store_fence, {});
  running_->core.store_fence();
}

void World::full_fence() {
  const Outside outside;
  if (!running_) return;
  synchronising_instruction();
  running_->core.drain();
  record(Did::full_fence, {});
}

void World::prefetch(const void* p) {
  const Outside outside;
  if (!running_) return;
  instruction();
  const Place place = place_of(p);
  if (place.space == Space::device && setting_.rng.one_in(2)) {
    running_->process.host.memory.prefetch(HostMemory::line_of(place.offset));
  }
}

void World::nt_store(void* to, const void* from, std::size_t bytes) {
  const Outside outside;
  const auto* source = static_cast<const std::byte*>(from);
  auto* target = static_cast<std::byte*>(to);
  while (bytes != 0) {
    instruction();
    const Place place = place_of(target);
    const std::size_t n = std::min<std::size_t>(bytes, kLineBytes - place.offset % kLineBytes);
    if (!running_) {
      std::memcpy(setting_.device.write(place.offset), source, n);
    } else {
      record(Did::nt_store, place);
      running_->core.nt_store(place, source, static_cast<std::uint32_t>(n));
      mark_busy(*running_);
      touched(place);
    }
    source += n;
    target += n;
    bytes -= n;
  }
}

void World::cached_store(void* to, const void* from, std::size_t bytes) {
  const Outside outside;
  const auto* source = static_cast<const std::byte*>(from);
  auto* target = static_cast<std::byte*>(to);
  while (bytes != 0) {
    const std::uint64_t inside = reinterpret_cast<std::uintptr_t>(target) % 8;
    const std::uint32_t n = inside == 0 && bytes >= 8 ? 8 : 1;
    std::uint64_t value = 0;
    std::memcpy(&value, source, n);
    store(target, n, value);
    source += n;
    target += n;
    bytes -= n;
  }
}

void World::read(void* to, const void* from, std::size_t bytes) {
  const Outside outside;
  auto* target = static_cast<std::byte*>(to);
  const auto* source = static_cast<const std::byte*>(from);
  std::uint32_t line = kNone;
  while (bytes != 0) {
    const std::uint64_t at = reinterpret_cast<std::uintptr_t>(source);
    const std::uint32_t n = at % 8 == 0 && bytes >= 8 ? 8 : 1;
    std::uint64_t value = 0;
    if (!running_) {
      value = load(source, n);
    } else {
      const auto now = static_cast<std::uint32_t>(setting_.device.offset(at) / kLineBytes);
      const bool first = now != line;
      if (first) instruction();
      line = now;
      const Place place = place_of(source);
      std::uint64_t on_device = 0;
      From answered = From::store_buffer;
      if (running_->core.idle() || !running_->core.forward(place.address, n, value)) {
        value = read_place(place, n, answered, on_device);
      }
      touched(place);
      if (first || answered == From::stale_cache)
        record(Did::load, place, n, value, on_device, answered);
    }
    std::memcpy(target, &value, n);
    source += n;
    target += n;
    bytes -= n;
  }
}

void World::dma_write(void* to, const void* from, std::size_t bytes) {
  const Outside outside;
  if (!running_) return nt_store(to, from, bytes);
  transfer(true, offset(to), nullptr, from, bytes);
}

void World::dma_read(void* to, const void* from, std::size_t bytes) {
  const Outside outside;
  if (!running_) return read(to, from, bytes);
  transfer(false, offset(from), to, nullptr, bytes);
}

void World::transfer(bool write, std::uint64_t offset, void* memory, const void* source,
                     std::size_t bytes) {
  if (bytes == 0) return;
  instruction();
  running_->core.drain_stores();  // the doorbell is a store
  auto dma = std::make_unique<Dma>();
  dma->process = &running_->process;
  dma->write = write;
  dma->offset = offset;
  dma->data.resize(bytes);
  if (write) std::memcpy(dma->data.data(), source, bytes);
  for (std::uint64_t line = offset / kLineBytes; line * kLineBytes < offset + bytes; ++line) {
    dma->lines.push_back(static_cast<std::uint32_t>(line));
  }
  record(Did::dma_started, {0, offset, Space::device});
  Dma* const under_way = dma.get();
  dmas_.push_back(std::move(dma));
  under_way->copy_to = static_cast<std::byte*>(memory);
  wait_for(under_way, 0);
  record(Did::dma_done, {0, offset, Space::device});
}

void Mutex::lock() noexcept {
  const Outside outside;
  World& world = World::now();
  if (!world.running_) return;
  world.instruction();
  world.running_->core.drain();
  while (held_) world.wait_for(this, 0);
  held_ = true;
}

bool Mutex::try_lock() noexcept {
  const Outside outside;
  World& world = World::now();
  if (!world.running_) return true;
  world.instruction();
  world.running_->core.drain();
  if (held_) return false;
  return held_ = true;
}

void Mutex::unlock() noexcept {
  const Outside outside;
  World& world = World::now();
  if (!world.running_) return;
  world.instruction();
  world.running_->core.drain_stores();
  held_ = false;
  world.wake_waiters(this);
}

beluga::LockResult World::lock(const void* mutex, std::uint32_t timeout_ms) {
  using beluga::LockResult;
  const Outside outside;
  if (!running_) {
    RobustLocks::Lock& lock = locks_.at(mutex, acting_ ? acting_->id : std::uint16_t{0xffff});
    const bool died = lock.owner_died;
    lock.held = true;
    lock.owner_died = false;
    return died ? LockResult::owner_died : LockResult::acquired;
  }
  instruction();
  Fiber& fiber = *running_;
  const Place place = place_of(mutex);
  if (fiber.locks_forbidden != 0)
    fail("G7: " + fiber.name + " takes a lock where none may be taken");
  fiber.core.drain();
  const std::uint64_t until = setting_.moment.ns + std::uint64_t{timeout_ms} * 1'000'000;
  for (;;) {
    RobustLocks::Lock& lock = locks_.at(mutex, fiber.process.host.id);
    if (!lock.held) {
      const bool died = lock.owner_died;
      lock.host = fiber.process.host.id;
      lock.held = true;
      lock.owner_died = false;
      lock.holder = &fiber;
      ++fiber.robust_locks;
      record(died ? Did::lock_owner_died : Did::locked, place);
      return died ? LockResult::owner_died : LockResult::acquired;
    }
    if (timeout_ms == 0 || setting_.moment.ns >= until) {
      record(Did::lock_timed_out, place);
      return LockResult::timed_out;
    }
    record(Did::waits, place, 0, (until - setting_.moment.ns) / 1'000);
    wait_for(mutex, until);
  }
}

void World::unlock(const void* mutex) {
  const Outside outside;
  if (running_) {
    instruction();
    running_->core.drain_stores();
    record(Did::unlocked, place_of(mutex));
  }
  RobustLocks::Lock& lock = locks_.at(mutex, 0xffff);
  if (!lock.held || lock.holder != running_) {
    fail("a robust mutex is unlocked by who does not hold it");
    return;
  }
  lock.held = false;
  lock.holder = nullptr;
  wake_waiters(mutex);
}

const Fiber* World::holder(const void* mutex) const {
  const RobustLocks::Lock* lock = locks_.find(mutex);
  return lock && lock->held ? lock->holder : nullptr;
}

void World::forget_locks(const void* memory, std::size_t bytes) {
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  locks_.each([&](RobustLocks::Lock& lock) {
    if (reinterpret_cast<std::uintptr_t>(lock.address) - begin >= bytes) return;
    lock.held = lock.owner_died = false;
    lock.holder = nullptr;
  });
}

}  // namespace sim
