#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "host_memory.hpp"
#include "setting.hpp"

namespace sim {

/// An address, and whose it is.
struct Place {
  std::uintptr_t address = 0;
  std::uint64_t offset = 0;  // in the device or the control block
  Space space = Space::other;
};

/// What a CPU has executed but not yet carried out: the store buffer, with the flushes and
/// non-temporal stores that pass through it in weaker order, and loads whose answer nobody has
/// needed yet.
///
///   store   after all older stores (TSO)
///   clwb, clflushopt   after older stores to the same line; otherwise in any order, also with
///   younger stores nt      after older writes to the same line; a write-combining buffer may go in
///   parts fence   SFENCE: after all that is older; all that is younger is after it. Loads do not
///   care
///
/// MFENCE and locked operations are `drain`: nothing is left.
class Core {
 public:
  Core(Setting& setting, HostMemory& memory, std::uint16_t host, std::uint16_t fiber)
      : setting_(setting), memory_(memory), host_(host), fiber_(fiber) {
    queue_.reserve(kEntries);
  }

  bool idle() const noexcept { return queue_.empty() && loads_.empty(); }

  void store(const Place& place, std::uint32_t bytes, std::uint64_t value, std::uint64_t serial) {
    push({Kind::store, static_cast<std::uint8_t>(bytes), false, 0, place, value, setting_.moment.ns,
          serial});
  }
  void write_back(const Place& place) { push_flush(Kind::write_back, place); }
  void flush(const Place& place) { push_flush(Kind::flush, place); }
  void store_fence() {
    if (queue_.empty() || queue_.back().kind == Kind::fence) return;
    push({Kind::fence, 0, false, 0, {}, 0, setting_.moment.ns, 0});
  }
  /// Up to the end of its line.
  void nt_store(const Place& place, const void* data, std::uint32_t bytes) {
    const std::uint64_t inside = place.offset % kLineBytes;
    WriteCombining* buffer = nullptr;
    for (std::size_t i = queue_.size(); i-- > 0 && queue_[i].kind != Kind::fence;) {
      if (line_of(queue_[i]) != place.address / kLineBytes) continue;
      if (queue_[i].kind == Kind::nt) buffer = &buffers_[queue_[i].buffer];
      if (queue_[i].kind == Kind::nt || queue_[i].kind == Kind::store) break;
    }
    if (!buffer) {
      std::uint32_t number = 0;
      while (number < kBuffers && buffers_[number].mask) ++number;
      if (number == kBuffers) {
        // All write-combining buffers are taken: what is older goes.
        while (buffers_[number = setting_.rng.below(kBuffers)].mask) drain_one();
      }
      Place line = place;
      line.address -= inside;
      line.offset -= inside;
      buffer = &buffers_[number];
      buffer->mask = 1;  // taken, also while the queue makes room
      push({Kind::nt, 0, false, number, line, 0, setting_.moment.ns, 0});
      buffer->mask = 0;
    }
    std::memcpy(buffer->data + inside, data, bytes);
    const ByteMask bits = bytes == kLineBytes ? kAllBytes : (ByteMask{1} << bytes) - 1;
    buffer->mask |= bits << inside;
  }

  /// Is a load of these bytes answered by this core's own younger stores? A load that they cover
  /// only in part waits until they have drained.
  bool forward(std::uintptr_t address, std::uint32_t bytes, std::uint64_t& value) {
    for (std::size_t i = queue_.size(); i-- > 0;) {
      const Entry& entry = queue_[i];
      if (entry.kind == Kind::store) {
        if (entry.place.address >= address + bytes || address >= entry.place.address + entry.bytes)
          continue;
        if (entry.place.address > address || entry.place.address + entry.bytes < address + bytes) {
          drain();
          return false;
        }
        const std::uint64_t shifted = entry.value >> (8 * (address - entry.place.address));
        value = bytes == 8 ? shifted : shifted & ((std::uint64_t{1} << (8 * bytes)) - 1);
        return true;
      }
      if (entry.kind == Kind::nt && line_of(entry) == address / kLineBytes) {
        drain();
        return false;
      }
    }
    return false;
  }

  /// A load whose value nobody uses: answered now, or at any moment before the next full fence.
  void load_back(const Place& place) {
    if (loads_.size() == kLoads || setting_.rng.below(1024) < setting_.config.answer_at_once) {
      answer(place);
    } else {
      loads_.push_back(place);
    }
  }
  bool answer_one() {
    if (loads_.empty()) return false;
    const std::uint32_t i = setting_.rng.below(static_cast<std::uint32_t>(loads_.size()));
    const Place place = loads_[i];
    loads_[i] = loads_.back();
    loads_.pop_back();
    answer(place);
    return true;
  }

  /// One entry that may go next, whichever. False if there is none.
  bool drain_one() {
    if (queue_.empty()) return false;
    std::size_t i = setting_.rng.below(static_cast<std::uint32_t>(queue_.size()));
    if (!may_go(i) && setting_.rng.one_in(2)) i = 0;  // the first one always may
    while (!may_go(i)) --i;
    execute(i, true);
    return true;
  }
  /// Everything, in some order that is allowed: MFENCE, locked operations, a context switch.
  void drain() {
    while (drain_one()) {
    }
    while (answer_one()) {
    }
  }
  /// So that a store may follow in program order: weakly ordered flushes behind the last fence
  /// stay. What stays is bound to happen.
  void drain_stores() {
    const auto ordered = [](const Entry& e) {
      return e.kind == Kind::store || e.kind == Kind::fence;
    };
    for (std::size_t left = count(ordered); left != 0; left = count(ordered)) {
      std::size_t i = 0;
      while (!ordered(queue_[i])) ++i;
      if (may_go(i)) {
        execute(i, false);
      } else {
        execute(0, false);
      }
    }
    for (Entry& entry : queue_) entry.bound = true;
  }
  bool older_than(std::uint64_t ns) const noexcept {
    return !queue_.empty() && queue_.front().issued < ns;
  }

  /// Killed: as if it had been at an arbitrary one of the last instructions, which matters only for
  /// those that still are here.
  void cut() {
    std::size_t keep = setting_.rng.below(static_cast<std::uint32_t>(queue_.size() + 1));
    for (std::size_t i = keep; i < queue_.size(); ++i) {
      if (queue_[i].bound) keep = i + 1;
    }
    while (queue_.size() > keep) {
      if (queue_.back().kind == Kind::nt) buffers_[queue_.back().buffer].mask = 0;
      queue_.pop_back();
    }
    loads_.clear();
    drain();
  }
  /// Power-off: an arbitrary part happens.
  void lose_some() {
    for (std::uint32_t n = setting_.rng.below(static_cast<std::uint32_t>(queue_.size() + 1)); n > 0;
         --n) {
      drain_one();
    }
    queue_.clear();
    loads_.clear();
    for (WriteCombining& buffer : buffers_) buffer.mask = 0;
  }

  /// Calls each(serial, offset, bytes, value) for the stores to the device that are still here.
  template <class Each>
  void each_pending_store(Each&& each) const {
    for (const Entry& entry : queue_) {
      if (entry.kind == Kind::store && entry.place.space == Space::device) {
        each(entry.serial, entry.place.offset, entry.bytes, entry.value);
      }
    }
  }

 private:
  static constexpr std::size_t kEntries = 48;
  static constexpr std::uint32_t kBuffers = 8;
  static constexpr std::size_t kLoads = 16;

  enum class Kind : std::uint8_t { store, write_back, flush, fence, nt };
  struct Entry {
    Kind kind;
    std::uint8_t bytes;
    bool bound;
    std::uint32_t buffer;
    Place place;
    std::uint64_t value;
    std::uint64_t issued;
    std::uint64_t serial;
  };
  struct WriteCombining {
    ByteMask mask = 0;
    alignas(8) std::byte data[kLineBytes];
  };

  static std::uintptr_t line_of(const Entry& entry) noexcept {
    return entry.place.address / kLineBytes;
  }

  template <class Which>
  std::size_t count(Which&& which) const {
    std::size_t n = 0;
    for (const Entry& entry : queue_) n += which(entry) ? 1 : 0;
    return n;
  }

  void push(const Entry& entry) {
    while (queue_.size() >= kEntries) drain_one();
    queue_.push_back(entry);
  }
  void push_flush(Kind kind, const Place& place) {
    push({kind, 0, false, 0, place, 0, setting_.moment.ns, 0});
    if (setting_.rng.below(1024) < setting_.config.flush_at_once && may_go(queue_.size() - 1)) {
      execute(queue_.size() - 1, true);
    }
  }

  bool may_go(std::size_t i) const noexcept {
    const Entry& entry = queue_[i];
    if (entry.kind == Kind::fence) return i == 0;
    for (std::size_t j = 0; j < i; ++j) {
      const Entry& older = queue_[j];
      if (older.kind == Kind::fence) return false;
      if (older.kind == Kind::store && entry.kind == Kind::store) return false;
      if ((older.kind == Kind::store || older.kind == Kind::nt) && line_of(older) == line_of(entry))
        return false;
    }
    return true;
  }

  /// `in_parts`: a write-combining buffer may let only some of its words go.
  void execute(std::size_t i, bool in_parts) {
    const Entry entry = queue_[i];
    if (entry.kind == Kind::nt) {
      WriteCombining& buffer = buffers_[entry.buffer];
      ByteMask part = buffer.mask;
      if (in_parts && setting_.rng.one_in(2)) {
        ByteMask words = 0;
        const std::uint32_t chosen = setting_.rng.below(256);
        for (std::uint32_t word = 0; word < 8; ++word) {
          if (chosen >> word & 1) words |= ByteMask{0xff} << (8 * word);
        }
        if (part & words) part &= words;
      }
      note(Did::nt_drained, entry);
      memory_.write_around(HostMemory::line_of(entry.place.offset), part, buffer.data);
      tell_nt(entry, part, buffer);
      buffer.mask &= ~part;
      if (buffer.mask) return;
    }
    queue_.erase(queue_.begin() + static_cast<std::ptrdiff_t>(i));
    switch (entry.kind) {
      case Kind::store:
        if (entry.place.space == Space::device) {
          memory_.write(entry.place.offset, entry.bytes, &entry.value);
          if (setting_.watches.any(HostMemory::line_of(entry.place.offset))) {
            setting_.watches.tell({Seen::Stage::visible, host_, fiber_, entry.bytes,
                                   entry.place.offset, entry.value, 0});
          }
        } else {
          std::memcpy(reinterpret_cast<void*>(entry.place.address), &entry.value, entry.bytes);
        }
        note(Did::drained, entry);
        break;
      case Kind::write_back:
        note(Did::cleaned, entry);
        memory_.clean(HostMemory::line_of(entry.place.offset));
        break;
      case Kind::flush:
        note(Did::flushed, entry);
        memory_.flush(HostMemory::line_of(entry.place.offset));
        break;
      case Kind::nt:
      case Kind::fence:
        break;
    }
  }
  void answer(const Place& place) {
    Event event;
    event.did = Did::answered;
    event.space = place.space;
    event.host = host_;
    event.fiber = fiber_;
    event.at = place.offset;
    for (const Entry& entry : queue_) {
      if (entry.kind == Kind::store && entry.place.address / 8 == place.address / 8) {
        event.from = From::store_buffer;
        setting_.trace.record(event);
        return;
      }
    }
    const std::uint32_t line = HostMemory::line_of(place.offset);
    event.from = memory_.cached(line) ? From::cache : From::device;
    memory_.load_line(line);
    setting_.trace.record(event);
  }
  void note(Did did, const Entry& entry) {
    Event event;
    event.did = did;
    event.space = entry.place.space;
    event.host = host_;
    event.fiber = fiber_;
    event.at = entry.place.space == Space::other ? 0 : entry.place.offset;
    event.bytes = entry.bytes;
    event.value = entry.value;
    setting_.trace.record(event);
  }
  void tell_nt(const Entry& entry, ByteMask part, const WriteCombining& buffer) {
    if (!setting_.watches.any(HostMemory::line_of(entry.place.offset))) return;
    for (std::uint32_t word = 0; word < 8; ++word) {
      if ((part >> (8 * word) & 0xff) == 0) continue;
      std::uint64_t value;
      std::memcpy(&value, buffer.data + 8 * word, 8);
      setting_.watches.tell(
          {Seen::Stage::visible, host_, fiber_, 8, entry.place.offset + 8 * word, value, 0});
    }
  }

  Setting& setting_;
  HostMemory& memory_;
  const std::uint16_t host_;
  const std::uint16_t fiber_;
  std::vector<Entry> queue_;
  std::array<WriteCombining, kBuffers> buffers_;
  std::vector<Place> loads_;
};

}  // namespace sim
