#pragma once

#include <cstddef>
#include <cstdint>

/// The on-pool format, version 1. Everything here is little-endian, made of offsets and never of pointers.
/// Whatever one host writes starts and ends on a 64-byte line and shares no line with another writer.
///
///   offset 0 of every device            superblock (of device 0: the pool's; of the others: a copy)
///   hosts_offset    max_hosts x         host page: identity, heartbeat, name, counters, ring, acks | claims
///   index_offset    buckets x hosts x   lane (64 B)
///   headers_offset  extents x           extent header (64 B)
///   hot_offset      extents x slots x   hot descriptor line (64 B)
///   cold_offset     extents x slots x   record_bytes: key record, then layout metadata
///   stamps_offset   hosts x extents x slots x 4 B lease stamp
///   payload_offset  extents of device 0 (the other devices' extents follow their superblock)
namespace beluga {

inline constexpr std::size_t kLine = 64;
inline constexpr std::uint64_t kMagic = 0x31304147554c4542;         // "BELUGA01", read as bytes
inline constexpr std::uint64_t kMagicPartial = 0x3f3f4147554c4542;  // "BELUGA??": a format has begun
inline constexpr std::uint32_t kFormatVersion = 1;
inline constexpr std::uint32_t kMaxHosts = 64;
inline constexpr std::uint32_t kMaxDevices = 64;
inline constexpr std::uint32_t kLaneEntries = 8;
inline constexpr std::uint64_t kSuperblockBytes = 4096;

enum class VisibilityMode : std::uint32_t { coherent = 0, noncoherent = 1 };
enum class PayloadVisibility : std::uint32_t { flush = 0, direct = 1 };

/// One entry of the superblock's device table.
struct DeviceEntry {
  std::uint64_t bytes;           // of the device that belong to the pool
  std::uint64_t payload_offset;  // of its first extent, within the device
  std::uint32_t first_extent;
  std::uint32_t extents;
  std::uint64_t reserved;
};
static_assert(sizeof(DeviceEntry) == 32);

/// Superblock. Written once by format; the magic goes last, so a half-formatted pool is never attached.
///
///    0 +----------------+----------------+--------------------------------+
///      | magic          | version| bytes | uuid                           |
///   32 +----------------+--------+-------+---------------+----------------+
///      | epoch          | hosts  |devices| extent_size   |extents | slots |
///   64 +----------------+----------------+---------------+----------------+
///      | min_slot       | buckets        |record |visib. |payload |lease  |
///   96 +----------------+----------------+---------------+----------------+
///      | created        | hosts_offset   | host_stride   | index_offset   |
///  128 +----------------+----------------+---------------+----------------+
///      | headers_offset | hot_offset     | cold_offset   | stamps_offset  |
///  160 +----------------+----------------+---------------+----------------+
///      | metadata_bytes | device | resvd | reserved                       |
///  192 +----------------+----------------+--------------------------------+
///      | key_scheme: 192 bytes of text, zero-padded                       |
///  384 +-------------------------------------------------------------------
///      | device table: 64 x {bytes, payload_offset, first_extent, extents}|
/// 2432 +-------------------------------------------------------------------
///      | zeros                                            crc at 4088     |
/// 4096 +-------------------------------------------------------------------
struct Superblock {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t header_bytes;
  std::uint8_t uuid[16];
  std::uint64_t epoch;  // raised by a forced format: every process closes when it moves
  std::uint32_t max_hosts;
  std::uint32_t device_count;
  std::uint64_t extent_size;
  std::uint32_t extents;
  std::uint32_t slots_per_extent;  // the most slots an extent can be cut into
  std::uint64_t min_slot;
  std::uint64_t buckets;       // a power of two
  std::uint32_t record_bytes;  // cold bytes of a descriptor: a multiple of 64
  VisibilityMode visibility;
  PayloadVisibility payload_visibility;
  std::uint32_t max_lease_ms;
  std::uint64_t created_unix_ms;
  std::uint64_t hosts_offset;
  std::uint64_t host_stride;
  std::uint64_t index_offset;
  std::uint64_t headers_offset;
  std::uint64_t hot_offset;
  std::uint64_t cold_offset;
  std::uint64_t stamps_offset;
  std::uint64_t metadata_bytes;
  std::uint32_t device_index;  // which device this copy lies on
  std::uint32_t reserved0;
  std::uint64_t reserved1[2];
  char key_scheme[192];
  DeviceEntry devices[kMaxDevices];
  std::uint8_t zeros[4088 - 2432];
  std::uint32_t crc;  // crc32c of bytes 8..4088
  std::uint32_t reserved2;
};
static_assert(sizeof(Superblock) == kSuperblockBytes);
static_assert(offsetof(Superblock, epoch) == 32);
static_assert(offsetof(Superblock, min_slot) == 64);
static_assert(offsetof(Superblock, created_unix_ms) == 96);
static_assert(offsetof(Superblock, headers_offset) == 128);
static_assert(offsetof(Superblock, key_scheme) == 192);
static_assert(offsetof(Superblock, devices) == 384);
static_assert(offsetof(Superblock, crc) == 4088);

/// Line 0 of a host page: who this host is.
///
///    0 +--------+--------+----------------+--------------------------------+
///      | state  | incarn.| nonce          | machine                        |
///   32 +--------+--------+----------------+--------------------------------+
///      | key scheme fp   | epoch          | joined (unix ms)| crc  | zero  |
///   64 +-----------------+----------------+--------------------------------+
struct alignas(kLine) HostIdentity {
  std::uint32_t state;        // HostState
  std::uint32_t incarnation;  // +1 at each recovery of the host
  std::uint64_t nonce;        // the same as in the host's control block
  std::uint8_t machine[16];
  std::uint64_t key_scheme;  // XXH3 of the scheme's text, 0: none yet
  std::uint64_t epoch;
  std::uint64_t joined_unix_ms;
  std::uint32_t crc;  // crc32c of bytes 0..56
  std::uint32_t zero;
};
static_assert(sizeof(HostIdentity) == kLine);

/// `joining`: its lanes are read already, but maybe not by everybody; nothing is committed yet.
enum class HostState : std::uint32_t { never = 0, member = 1, retired = 2, joining = 3 };

/// Line 1 of a host page: is it alive?
struct alignas(kLine) HostHeartbeat {
  std::uint32_t tick;         // ms of the host's own clock; leases count in it; never 0 once live
  std::uint32_t incarnation;  // which incarnation beats
  std::uint64_t epoch;
  std::uint32_t pressure;  // extents this host could use and cannot claim
  std::uint32_t processes;
  std::uint64_t active_hosts;    // whose lanes this host's lookups read: a joiner waits to be among them
  std::uint32_t dead_after_ms;   // how long others must wait before they may judge this host dead
  std::uint32_t coldest_age_ms;  // of the chunk this host would evict next, at least 1; 0: there is none
  std::uint32_t left;            // 1: the host's last process has left in order
  std::uint32_t reserved0;
  std::uint64_t reserved[2];
};
static_assert(sizeof(HostHeartbeat) == kLine);

/// A request to a chunk's owner, in the ring of the host that asks.
struct OwnerRequest {
  std::uint64_t generation;
  std::uint32_t slot;
  std::uint32_t operation;
};
static_assert(sizeof(OwnerRequest) == 16);

inline constexpr std::uint32_t kRingEntries = 128;
inline constexpr std::uint32_t kHostCounters = 32;

/// A host page, written by that host alone. The extent claims (a byte each) start at kClaimsOffset.
///
///     0 +-------------------------------+
///       | identity                      |
///    64 | heartbeat                     |
///   128 | name: 64 bytes of text        |
///   192 | ring head, incarnation        |
///   256 | counters: 32 x 8              |
///   512 | acknowledgements: 64 hosts x 8|
///  1024 | ring: 128 x 16                |
///  3072 | zeros                         |
///  4096 +-------------------------------+
///       | claims: a byte per extent     |
///       +-------------------------------+
struct HostPage {
  HostIdentity identity;
  HostHeartbeat heartbeat;
  char name[64];
  std::uint64_t ring_head;
  std::uint32_t ring_incarnation;
  std::uint32_t ring_reserved;
  std::uint8_t ring_pad[48];
  std::uint64_t counters[kHostCounters];
  std::uint64_t acknowledged[kMaxHosts];
  OwnerRequest ring[kRingEntries];
  std::uint8_t zeros[1024];
};
static_assert(sizeof(HostPage) == 4096);
static_assert(offsetof(HostPage, counters) == 256);
static_assert(offsetof(HostPage, acknowledged) == 512);
static_assert(offsetof(HostPage, ring) == 1024);
inline constexpr std::uint64_t kClaimsOffset = sizeof(HostPage);

/// A host's claim on one extent. CLAIMING and SETTLED are steps of the election; only OWNED lasts.
enum class Claim : std::uint8_t { none = 0, claiming = 1, settled = 2, owned = 3 };

/// One lane: the line of a bucket that one host writes. An entry is one aligned 8-byte store; 0 is empty.
///
///   63                             32 31                              0
///   +--------------------------------+--------------------------------+
///   | tag: fingerprint bits 96..127  | slot number + 1                |
///   +--------------------------------+--------------------------------+
///
/// Nothing else lies in a lane: entries are self-contained and confirmed against the slot's descriptor.
struct alignas(kLine) Lane {
  std::uint64_t entries[kLaneEntries];
};
static_assert(sizeof(Lane) == kLine);

/// How an extent is cut, written by its owner before it stores a chunk there. Only recovery and walks of
/// other hosts' extents read it: a descriptor carries its own offset.
struct alignas(kLine) ExtentHeader {
  std::uint64_t slot_size;
  std::uint32_t slots;
  std::uint32_t owner;
  std::uint32_t incarnation;
  std::uint32_t crc;  // crc32c of bytes 0..20, seeded with the extent number
  std::uint8_t zeros[40];
};
static_assert(sizeof(ExtentHeader) == kLine);

enum class SlotState : std::uint8_t { free = 0, writing = 1, ready = 2, closing = 3 };

/// The hot line of a descriptor. Its first word is the sequence of the seqlock:
///
///   63                                        16 15      8 7       0
///   +-------------------------------------------+---------+---------+
///   | generation (+1 at each reuse, for ever)   | process | state   |
///   +-------------------------------------------+---------+---------+
///
/// `process` is the owner host's process entry + 1 while the state is writing or closing, else 0.
///
///    0 +----------------+----------------+----------------+----------------+
///      | word           | fingerprint                     | size           |
///   32 +----------------+----------------+-------+----+---+-------+--------+
///      | offset         | checksum       | crc   |rlen|mlen| born | depth  |
///   64 +----------------+----------------+-------+----+---+-------+--------+
struct alignas(kLine) HotDescriptor {
  std::uint64_t word;
  std::uint64_t print_lo;
  std::uint64_t print_hi;
  std::uint64_t size;      // bytes of payload
  std::uint64_t offset;    // of the payload, from the extent's start
  std::uint64_t checksum;  // payload_checksum() of the payload, 0: none
  std::uint32_t crc;       // crc32c of bytes 8..48, 52..64 and the cold bytes, seeded with slot and generation
  std::uint16_t record_bytes;
  std::uint16_t meta_bytes;
  std::uint32_t born;   // owner's tick when the chunk was published
  std::uint32_t depth;  // position of the chunk in its prefix, 0: first
};
static_assert(sizeof(HotDescriptor) == kLine);
static_assert(offsetof(HotDescriptor, crc) == 48);

constexpr std::uint64_t make_word(std::uint64_t generation, std::uint32_t process, SlotState state) {
  return generation << 16 | std::uint64_t{process & 0xffu} << 8 | static_cast<std::uint64_t>(state);
}
constexpr std::uint64_t generation_of(std::uint64_t word) { return word >> 16; }
constexpr std::uint32_t process_of(std::uint64_t word) {
  return static_cast<std::uint32_t>(word >> 8 & 0xff);
}
constexpr SlotState state_of(std::uint64_t word) { return static_cast<SlotState>(word & 0xff); }
constexpr bool is_state(std::uint64_t word) { return (word & 0xff) <= 3; }

constexpr std::uint64_t make_entry(std::uint64_t print_hi, std::uint32_t slot) {
  return (print_hi >> 32) << 32 | (std::uint64_t{slot} + 1);
}

}  // namespace beluga
