#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "descriptor.hpp"
#include "hosts.hpp"

namespace beluga {

inline std::uint32_t header_crc(std::uint32_t extent, const ExtentHeader& header) {
  return crc32c(extent + 1, {reinterpret_cast<const std::byte*>(&header), 20});
}

/// Which host owns which extent, and how an own extent is cut. All methods that change something are called
/// under ControlHeader::slots.
template <class V>
class Extents {
 public:
  Extents(HostContext& context, Hosts<V>& hosts) : context_(context), pool_(*context.pool), hosts_(hosts) {}

  Claim claim_of(std::uint32_t host, std::uint32_t extent) const {
    const std::uint8_t* claim = pool_.claims(host) + extent;
    if (host != context_.host) {
      V::observe(Point::claim, claim, 1);
      V::observe_fence(Point::claim);
    }
    return static_cast<Claim>(V::load(claim));
  }

  /// The extents that are nobody's: all claims of all hosts, read at once. A claim may be damaged: a header, which is
  /// voided before the claim goes, is as good as one. (Where it is this host's own, there are chunks, which the next
  /// recovery finds.)
  std::vector<std::uint32_t> unclaimed() const {
    const std::uint32_t extents = pool_.sb().extents;
    for (std::uint32_t h = 0; h < pool_.sb().max_hosts; ++h) {
      if (h != context_.host) V::observe(Point::claim, pool_.claims(h), extents);
    }
    V::observe_fence(Point::claim);
    std::vector<bool> taken(extents);
    for (std::uint32_t h = 0; h < pool_.sb().max_hosts; ++h) {
      const std::uint8_t* claims = pool_.claims(h);
      for (std::uint32_t e = 0; e < extents; ++e) {
        const auto claim = static_cast<Claim>(V::load(claims + e));
        // An election that its host did not live to finish stands in nobody's way. A guess: claim() looks afresh.
        taken[e] = taken[e] || (claim != Claim::none && !(claim == Claim::claiming && !hosts_.judge(h).live));
      }
    }
    std::vector<std::uint32_t> free;
    for (std::uint32_t e = 0; e < extents; ++e) {
      if (taken[e]) continue;
      free.push_back(e);
      V::observe(Point::header, pool_.header(e), kLine);
    }
    V::observe_fence(Point::header);
    std::erase_if(free, [&](std::uint32_t e) {
      ExtentHeader header;
      return load_header(e, header);
    });
    return free;
  }

  /// Puts the claim on an own extent right if it was damaged. False: another host has the extent by now, and this one
  /// must not touch it any more.
  bool keep(std::uint32_t extent) {
    if (claim_of(context_.host, extent) == Claim::owned) return true;
    if (is_others(extent)) {
      context_.control->extent(extent) = ExtentControl{};
      note_cut();
      return false;
    }
    publish_claim(extent, Claim::owned);
    context_.count(Count::repaired);
    return true;
  }

  /// Looks at what this host says of an extent, whether it is its own and how it is cut, and repairs it.
  void scrub(std::uint32_t extent) {
    const ExtentControl& control = context_.control->extent(extent);
    if (!control.owned) {
      if (claim_of(context_.host, extent) == Claim::none) return;
      publish_claim(extent, Claim::none);
      context_.count(Count::repaired);
      return;
    }
    if (!keep(extent)) return;
    ExtentHeader header;
    const bool readable = load_header(extent, header);
    if (control.slots == 0) {
      if (!readable) void_header(extent);
      return;
    }
    if (readable && header.slots == control.slots && header.owner == context_.host) return;
    write_own_header(extent, control.slots);
    context_.count(Count::repaired);
  }

  /// Says of an own extent that is not cut that nothing is known of it.
  void void_header(std::uint32_t extent) {
    constexpr ExtentHeader nothing{};
    ExtentHeader header;
    load_words<V>(&header, pool_.header(extent), sizeof(header));
    if (std::memcmp(&header, &nothing, sizeof(header)) == 0) return;
    write_header(extent, nothing);
    context_.count(Count::repaired);
  }

  /// Claims a free extent. No lock is shared between hosts: each writes its own claim, confirms it, and looks
  /// at all others. Of two that settle at once at least one sees the other. False: somebody else has it.
  bool claim(std::uint32_t extent) {
    publish_claim(extent, Claim::claiming);
    for (int wait = 0;; ++wait) {
      const Rival rival = strongest_rival(extent);
      if (rival == Rival::none) break;
      if (rival == Rival::winner || wait == kClaimWaits) return withdraw(extent);
      V::sleep_us(1000);  // a higher host is about to withdraw
    }
    publish_claim(extent, Claim::settled);
    if (V::on(Point::claim, Step::check) && strongest_rival(extent) == Rival::winner) return withdraw(extent);
    if (headed_by_other(extent)) return withdraw(extent);  // whose claim was damaged
    publish_claim(extent, Claim::owned);
    return true;
  }

  /// Cuts an own extent in which every slot is free. False: it is not this host's any more. Throws no_space when
  /// descriptors get no storage.
  bool cut(std::uint32_t extent, std::uint32_t slots) {
    if (!keep(extent)) return false;
    ExtentControl& control = context_.control->extent(extent);
    pool_.reserve_descriptors(extent, slots);
    reserve_leases(extent);
    // Not cut at all until the last store: a process killed in between must not leave the free map of one cut
    // with the slot size of another.
    control.slots = 0;
    // Whatever an earlier owner or a flipped bit left must not look like a chunk: a new generation, of the
    // newest that ever was.
    // SYNC POINT: void_slot (with release on the host that had the extent before)
    const std::uint32_t first = pool_.first_slot(extent);
    V::observe(Point::void_slot, pool_.hot(first), std::uint64_t{slots} * kLine);
    V::observe_fence(Point::void_slot);
    for (std::uint32_t i = 0; i < slots; ++i) {
      HotDescriptor* line = pool_.hot(first + i);
      const std::uint64_t word = V::load(&line->word);
      if (!is_state(word) || state_of(word) != SlotState::free) {
        publish_word<V>(Point::void_slot, line, make_word(generation_of(word) + 1, 0, SlotState::free));
      }
    }
    write_own_header(extent, slots);

    std::uint64_t* map = context_.control->free_map(extent);
    for (std::uint32_t w = 0; w < context_.control->map_words(); ++w) {
      const std::uint32_t from = w * 64;
      const std::uint64_t bits = from >= slots              ? 0
                                 : slots - from >= 64       ? ~std::uint64_t{0}
                                                            : (std::uint64_t{1} << (slots - from)) - 1;
      __atomic_store_n(&map[w], bits, __ATOMIC_RELAXED);
    }
    control.slot_size = slot_bytes(pool_.sb(), slots);
    control.free = slots;
    control.hint = 0;
    control.draining = 0;
    control.full_disk = 0;
    control.owned = 1;
    control.slots = slots;
    note_cut();
    return true;
  }

  /// Storage for this host's leases in an own extent: a chunk that could be stored can then also be read, however
  /// full the file system gets. Throws no_space.
  void reserve_leases(std::uint32_t extent) const {
    const std::uint32_t slots = pool_.sb().slots_per_extent;
    pool_.reserve_stamps(context_.host, extent, slots);
    context_.control->reserve_slots(pool_.first_slot(extent), slots);
  }

  /// Before an own extent is given up: empties this host's caches of it. A dirty line that stayed would overwrite the
  /// next owner's chunk much later. In the extent every slot is free, and none is taken meanwhile.
  /// SYNC POINT: release (with cut and Publication on the next owner)
  void flush(std::uint32_t extent) const {
    if constexpr (V::mode == VisibilityMode::noncoherent) {
      const std::uint32_t first = pool_.first_slot(extent);
      const std::uint64_t slots = context_.control->extent(extent).slots;
      const std::uint64_t written = context_.control->extent(extent).reserved_bytes;
      V::confirm(Point::release, pool_.hot(first), slots * kLine);
      V::confirm(Point::release, pool_.cold(first), slots * pool_.sb().record_bytes);
      V::publish_payload(pool_.payload(extent), written, PayloadWrite::cached, context_.payload_cached());
    }
  }

  /// Gives the payload of an own extent back to the file system, unless a GPU of some process reaches it: that would go
  /// on reading and writing the old pages. In the extent every slot is free, and none is taken meanwhile, so that
  /// nobody begins to hold its pages now; whoever takes one later asks for storage again.
  void drop_storage(std::uint32_t extent) const {
    context_.control->extent(extent).reserved_bytes = 0;
    std::uint32_t* dropping = &context_.control->process(context_.process - 1).drops_pages;
    V::fetch_add(dropping, std::uint32_t{1});  // SYNC POINT: pages (with hold_pages)
    if (!pages_are_held()) pool_.punch_payload(extent);
    V::fetch_add(dropping, ~std::uint32_t{0});
  }

  /// Keeps this host's processes from giving pages back. False when one of them, perhaps stopped, may be about to
  /// after `timeout_ms`: then only pages in extents with a lease or a slot in use are safe.
  bool hold_pages(std::uint32_t timeout_ms) const {
    V::fetch_or(&context_.control->process(context_.process - 1).holds_pages, std::uint32_t{1});
    // SYNC POINT: pages (with drop_storage): one of the two sees what the other wrote first
    for (std::uint32_t waited = 0;; ++waited) {
      if (!pages_are_dropped()) return true;
      if (waited == timeout_ms) return false;
      V::sleep_us(1000);
    }
  }

  /// Gives up an own extent in which every slot is free. It has been flushed, and its storage dropped.
  void release(std::uint32_t extent) {
    ExtentControl& control = context_.control->extent(extent);
    control.owned = 0;
    control.slots = 0;
    control.free = 0;
    control.slot_size = 0;
    control.reserved_bytes = 0;
    control.draining = 0;
    note_cut();
    write_header(extent, ExtentHeader{});
    publish_claim(extent, Claim::none);
  }

  /// Reads how an extent is cut: by whichever host. False when its header is not valid.
  bool read_header(std::uint32_t extent, ExtentHeader& header) const {
    if (!context_.control->extent(extent).owned) {
      V::observe(Point::header, pool_.header(extent), kLine);
      V::observe_fence(Point::header);
    }
    return load_header(extent, header);
  }

  /// The same of a header that was observed.
  bool load_header(std::uint32_t extent, ExtentHeader& header) const {
    load_words<V>(&header, pool_.header(extent), sizeof(header));
    return header.crc == header_crc(extent, header) && header.slots >= 1 &&
           header.slots <= pool_.sb().slots_per_extent && header.slot_size == slot_bytes(pool_.sb(), header.slots) &&
           header.owner < pool_.sb().max_hosts;
  }

  void publish_claim(std::uint32_t extent, Claim claim) {
    std::uint8_t* mine = pool_.claims(context_.host) + extent;
    V::store(mine, static_cast<std::uint8_t>(claim));
    V::confirm(Point::claim, mine, 1);  // SYNC POINT: claim (with strongest_rival on the other hosts)
  }

 private:
  bool pages_are_held() const {
    for (std::uint32_t p = 0; p < kMaxProcesses; ++p) {
      if (V::load(&context_.control->process(p).holds_pages)) return true;
    }
    return false;
  }

  bool pages_are_dropped() const {
    for (std::uint32_t p = 0; p < kMaxProcesses; ++p) {
      if (V::load(&context_.control->process(p).drops_pages)) return true;
    }
    return false;
  }

  static constexpr int kClaimWaits = 20;
  enum class Rival { none, loser, winner };

  // SYNC POINT: claim (with publish_claim on the other hosts)
  Rival strongest_rival(std::uint32_t extent) {
    for (std::uint32_t h = 0; h < pool_.sb().max_hosts; ++h) {
      if (h == context_.host) continue;
      V::observe(Point::claim, pool_.claims(h) + extent, 1);
      hosts_.observe_clock(h);
    }
    V::observe_fence(Point::claim);
    Rival strongest = Rival::none;
    for (std::uint32_t h = 0; h < pool_.sb().max_hosts; ++h) {
      if (h == context_.host) continue;
      const auto claim = static_cast<Claim>(V::load(pool_.claims(h) + extent));
      if (claim == Claim::none) continue;
      if (claim != Claim::claiming) return Rival::winner;
      // An election that its host did not live to finish stands in nobody's way.
      if (!hosts_.judge(h).live) continue;
      if (h < context_.host) return Rival::winner;
      strongest = Rival::loser;
    }
    return strongest;
  }

  bool withdraw(std::uint32_t extent) {
    publish_claim(extent, Claim::none);
    return false;
  }

  /// Has another host won the extent, or does an intact header say that it has?
  bool is_others(std::uint32_t extent) const {
    for (std::uint32_t h = 0; h < pool_.sb().max_hosts; ++h) {
      if (h == context_.host) continue;
      const Claim claim = claim_of(h, extent);
      if (claim == Claim::settled || claim == Claim::owned) return true;
    }
    return headed_by_other(extent);
  }

  bool headed_by_other(std::uint32_t extent) const {
    V::observe(Point::header, pool_.header(extent), kLine);
    V::observe_fence(Point::header);
    ExtentHeader header;
    return load_header(extent, header) && header.owner != context_.host;
  }

  void write_own_header(std::uint32_t extent, std::uint32_t slots) {
    ExtentHeader header{};
    header.slots = slots;
    header.slot_size = slot_bytes(pool_.sb(), slots);
    header.owner = context_.host;
    header.incarnation = context_.header().incarnation;
    header.crc = header_crc(extent, header);
    write_header(extent, header);
  }

  void write_header(std::uint32_t extent, const ExtentHeader& header) {
    ExtentHeader* line = pool_.header(extent);
    // The first word goes first and comes last: whoever is killed in between leaves an extent that is not cut.
    V::store(&line->slot_size, std::uint64_t{0});
    store_words<V>(reinterpret_cast<std::byte*>(line) + 8, reinterpret_cast<const std::byte*>(&header) + 8,
                   sizeof(header) - 8);
    V::store(&line->slot_size, header.slot_size);
    V::confirm(Point::header, line, kLine);
  }

  void note_cut() { __atomic_fetch_add(&context_.header().cuts, 1, __ATOMIC_ACQ_REL); }

  HostContext& context_;
  const PoolMemory& pool_;
  Hosts<V>& hosts_;
};

}  // namespace beluga
