#pragma once

#include <array>
#include <bitset>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "content.hpp"
#include "descriptor.hpp"
#include "extents.hpp"
#include "input.hpp"
#include "pool_memory.hpp"

namespace fuzz {

/// One change of a pool's metadata, as an input asks for it.
struct Damage {
  std::uint64_t offset = 0;
  std::uint32_t length = 0;  // 1..kLine
  std::array<std::uint8_t, beluga::kLine> bytes{};
  bool flip = false;    // `bytes` are xored in, not written
  bool repair = false;  // the CRC that covers the place is made to match afterwards
};

/// Decodes damage and does it, and keeps account of what was forged.
///
/// A record whose CRC matches is believed: whoever can compute one can give any key any bytes, and no check of
/// metadata finds that. What the pool promises is that *damage* yields no wrong byte. So a key is taken out of the
/// judgement when a change leaves a valid descriptor of it that is not the one from before, and all are when an
/// extent's header is forged. Whose an extent is, is recorded twice, in a claim and in the header: with both of them
/// gone nobody can tell, and two hosts may come to own it.
class Damager {
 public:
  Damager(const beluga::PoolMemory& pool, const Content& content) : pool_(pool), content_(content) {}

  void reset() {
    forged_.reset();
    all_forged_ = false;
    claims_hurt_.assign(pool_.sb().extents, false);
    headers_hurt_.assign(pool_.sb().extents, false);
  }
  bool forged(std::uint32_t key) const { return all_forged_ || forged_[key]; }

  Damage decode(Input& in) const {
    const beluga::Superblock& sb = pool_.sb();
    Damage damage;
    const std::uint8_t where = in.byte();
    const std::uint32_t slot = in.byte() % pool_.slot_limit();
    const std::uint32_t extent = slot % sb.extents;
    const std::uint32_t host = slot / 16 % sb.max_hosts;
    std::uint64_t bytes = beluga::kLine;
    switch (where % 16) {
      case 0:
        damage.offset = offset_of(pool_.host(host));
        bytes = 128;
        break;
      case 1:
        damage.offset = offset_of(pool_.host(host));
        bytes = sizeof(beluga::HostPage);
        break;
      case 2:
        damage.offset = offset_of(pool_.claims(host));
        bytes = sb.extents;
        break;
      case 3:
      case 4:
        damage.offset = offset_of(pool_.lane(slot % sb.buckets, host));
        break;
      case 5:
        damage.offset = offset_of(pool_.lane(pool_.bucket_of(content_.print(slot % kKeys).lo), host));
        break;
      case 6:
        damage.offset = offset_of(pool_.header(extent));
        bytes = 24;
        break;
      case 7:
      case 8:
        damage.offset = offset_of(pool_.hot(slot));
        bytes = 8;
        break;
      case 9:
      case 10:
        damage.offset = offset_of(pool_.hot(slot));
        break;
      case 11:
        damage.offset = offset_of(pool_.cold(slot));
        bytes = 64;
        break;
      case 12:
        damage.offset = offset_of(pool_.cold(slot));
        bytes = sb.record_bytes;
        break;
      case 13:
        damage.offset = offset_of(pool_.stamp(host, slot));
        bytes = 4;
        break;
      case 14:
        bytes = sizeof(beluga::Superblock);
        break;
      default:
        bytes = sb.metadata_bytes;
        break;
    }
    const std::uint8_t how = in.byte();
    damage.repair = how & 8;
    damage.offset += (bytes <= 256 ? in.byte() : in.take<std::uint16_t>()) % bytes;
    const std::uint64_t left = sb.metadata_bytes - damage.offset;
    switch (how % 8) {
      case 0:
      case 1:
      case 2:
        damage.flip = true;
        damage.length = 1;
        damage.bytes[0] = static_cast<std::uint8_t>(1u << (how >> 5));
        return damage;
      case 3:
        damage.length = 1;
        break;
      case 4:
        damage.length = 4;
        damage.offset -= damage.offset % 4;
        break;
      case 5:
        damage.length = 8;
        damage.offset -= damage.offset % 8;
        break;
      case 6: {  // a line from elsewhere in the pool
        damage.offset -= damage.offset % beluga::kLine;
        const std::uint64_t from = in.take<std::uint16_t>() % (sb.metadata_bytes / beluga::kLine) * beluga::kLine;
        damage.length = beluga::kLine;
        std::memcpy(damage.bytes.data(), base() + from, beluga::kLine);
        return damage;
      }
      default:
        damage.length = 1 + in.byte() % beluga::kLine;
        break;
    }
    damage.length = static_cast<std::uint32_t>(std::min<std::uint64_t>(damage.length, left));
    for (std::uint32_t i = 0; i < damage.length; ++i) damage.bytes[i] = in.byte();
    return damage;
  }

  /// For people.
  std::string describe(const Damage& damage) const {
    const beluga::Superblock& sb = pool_.sb();
    const std::uint64_t at = damage.offset;
    const auto in = [&](const char* what, std::uint64_t from, std::uint64_t each) {
      return std::string(what) + " " + std::to_string((at - from) / each) + " + " + std::to_string((at - from) % each);
    };
    std::string text = at >= sb.stamps_offset    ? in("stamp", sb.stamps_offset, 4)
                       : at >= sb.cold_offset    ? in("cold lines of slot", sb.cold_offset, sb.record_bytes)
                       : at >= sb.hot_offset     ? in("hot line of slot", sb.hot_offset, beluga::kLine)
                       : at >= sb.headers_offset ? in("header of extent", sb.headers_offset, beluga::kLine)
                       : at >= sb.index_offset   ? in("lane", sb.index_offset, beluga::kLine)
                       : at >= sb.hosts_offset   ? in("page of host", sb.hosts_offset, sb.host_stride)
                                                 : in("superblock", 0, sizeof(sb));
    text += damage.flip ? " ^=" : " =";
    static constexpr char digits[] = "0123456789abcdef";
    for (std::uint32_t i = 0; i < damage.length; ++i) {
      text += {' ', digits[damage.bytes[i] >> 4], digits[damage.bytes[i] & 15]};
    }
    return text + (damage.repair ? ", CRC made to match" : "");
  }

  void apply(const Damage& damage) {
    const std::uint64_t first = damage.offset;
    const std::uint64_t last = damage.offset + damage.length - 1;
    std::vector<Seen> slots;
    for (const std::uint64_t at : {first, last}) {
      if (const std::uint32_t slot = slot_at(at); slot < pool_.slot_limit()) slots.push_back(look(slot));
    }
    const std::uint32_t header = header_at(first);
    const Header header_before = look_at_header(header);

    for (std::uint64_t at = first; at <= last; ++at) note_claim(at);

    std::byte* to = base() + damage.offset;
    for (std::uint32_t i = 0; i < damage.length; ++i) {
      const auto value = static_cast<std::byte>(damage.bytes[i]);
      to[i] = damage.flip ? to[i] ^ value : value;
    }
    if (damage.repair) repair(damage.offset, slots, header);

    for (const Seen& before : slots) {
      const Seen now = look(before.slot);
      if (!now.valid || (before.valid && before.same(now))) continue;
      if (const std::uint32_t key = content_.key_of(print_of(now.hot)); key < kKeys) forged_[key] = true;
    }
    const Header header_now = look_at_header(header);
    if (header_now.valid && !(header_before.valid && header_before.same(header_now))) all_forged_ = true;
    if (header < pool_.sb().extents) headers_hurt_[header] = true;
    for (std::uint32_t e = 0; e < pool_.sb().extents; ++e) all_forged_ |= claims_hurt_[e] && headers_hurt_[e];
  }

 private:
  /// A descriptor as it would be believed.
  struct Seen {
    std::uint32_t slot = 0;
    bool valid = false;
    beluga::HotDescriptor hot{};
    std::vector<std::byte> cold;

    bool same(const Seen& other) const {
      // The state changes as chunks live and die, and is no part of what is believed.
      return beluga::generation_of(hot.word) == beluga::generation_of(other.hot.word) && cold == other.cold &&
             std::memcmp(reinterpret_cast<const std::byte*>(&hot) + 8,
                         reinterpret_cast<const std::byte*>(&other.hot) + 8, sizeof(hot) - 8) == 0;
    }
  };
  struct Header {
    bool valid = false;
    beluga::ExtentHeader line{};
    bool same(const Header& other) const { return std::memcmp(&line, &other.line, sizeof(line)) == 0; }
  };

  std::byte* base() const { return pool_.devices()[0]->base(); }
  std::uint64_t offset_of(const void* p) const {
    return static_cast<std::uint64_t>(static_cast<const std::byte*>(p) - base());
  }
  std::uint32_t slot_at(std::uint64_t offset) const {
    const beluga::Superblock& sb = pool_.sb();
    const std::uint64_t limit = pool_.slot_limit();
    if (offset >= sb.cold_offset) return static_cast<std::uint32_t>(std::min(limit, (offset - sb.cold_offset) / sb.record_bytes));
    if (offset >= sb.hot_offset) return static_cast<std::uint32_t>(std::min(limit, (offset - sb.hot_offset) / beluga::kLine));
    return pool_.slot_limit();
  }
  std::uint32_t header_at(std::uint64_t offset) const {
    const beluga::Superblock& sb = pool_.sb();
    if (offset < sb.headers_offset) return sb.extents;
    return static_cast<std::uint32_t>(std::min<std::uint64_t>(sb.extents, (offset - sb.headers_offset) / beluga::kLine));
  }

  void note_claim(std::uint64_t at) {
    for (std::uint32_t h = 0; h < pool_.sb().max_hosts; ++h) {
      const std::uint64_t claims = offset_of(pool_.claims(h));
      if (at >= claims && at < claims + pool_.sb().extents) claims_hurt_[at - claims] = true;
    }
  }

  Seen look(std::uint32_t slot) const {
    Seen seen;
    seen.slot = slot;
    std::memcpy(&seen.hot, pool_.hot(slot), sizeof(seen.hot));
    if (!fits(pool_.sb(), seen.hot)) return seen;
    seen.cold.resize(std::size_t{seen.hot.record_bytes} + seen.hot.meta_bytes);
    std::memcpy(seen.cold.data(), pool_.cold(slot), seen.cold.size());
    seen.valid = descriptor_crc(slot, seen.hot, seen.cold) == seen.hot.crc;
    return seen;
  }
  Header look_at_header(std::uint32_t extent) const {
    Header header;
    if (extent >= pool_.sb().extents) return header;
    std::memcpy(&header.line, pool_.header(extent), sizeof(header.line));
    header.valid = header.line.slots != 0 && header.line.crc == beluga::header_crc(extent, header.line);
    return header;
  }

  void repair(std::uint64_t offset, const std::vector<Seen>& slots, std::uint32_t header) {
    for (const Seen& seen : slots) {
      beluga::HotDescriptor hot;
      std::memcpy(&hot, pool_.hot(seen.slot), sizeof(hot));
      const std::size_t bytes = std::min<std::size_t>(std::size_t{hot.record_bytes} + hot.meta_bytes, pool_.sb().record_bytes);
      pool_.hot(seen.slot)->crc = descriptor_crc(seen.slot, hot, {pool_.cold(seen.slot), bytes});
    }
    if (header < pool_.sb().extents) {
      pool_.header(header)->crc = beluga::header_crc(header, *pool_.header(header));
    }
    for (std::uint32_t h = 0; h < pool_.sb().max_hosts; ++h) {
      beluga::HostIdentity& identity = pool_.host(h)->identity;
      const std::uint64_t at = offset_of(&identity);
      if (offset < at || offset >= at + beluga::kLine) continue;
      identity.crc = beluga::crc32c(0, {reinterpret_cast<const std::byte*>(&identity), 56});
    }
    if (offset < sizeof(beluga::Superblock)) {
      auto* sb = reinterpret_cast<beluga::Superblock*>(base());
      sb->crc = beluga::superblock_crc(*sb);
    }
  }

  const beluga::PoolMemory& pool_;
  const Content& content_;
  std::bitset<kKeys> forged_;
  bool all_forged_ = false;
  std::vector<bool> claims_hurt_;   // by extent
  std::vector<bool> headers_hurt_;
};

}  // namespace fuzz
