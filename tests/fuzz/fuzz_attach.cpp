// Arbitrary superblocks and host pages against opening, attaching and everything that a handle can do: what the
// superblock says decides where all else is looked for. An input writes into the first pages of a small pool.

#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "content.hpp"
#include "errors.hpp"
#include "format.hpp"
#include "guard_pages.hpp"
#include "input.hpp"
#include "pool_core.hpp"
#include "scratch_directory.hpp"
#include "tally.hpp"

namespace fuzz {
namespace {

using namespace beluga;

/// Two devices; the first has the metadata and most chunks.
struct Stage {
  Stage() {
    directory = scratch_directory();
    paths = {directory + "/pool", directory + "/more"};
    FormatOptions options;
    options.max_hosts = 2;
    options.extent_size = 64 << 10;
    options.chunk_hint = 64 << 10;
    format_pool(paths, kBytes, options);
    for (const std::string& path : paths) {
      files.push_back(Mapping::map(PoolFile::open_existing(path)));
    }
    const auto pool = attach();
    for (std::uint32_t k = 0; k < 12; ++k) put(*pool, k);
    pool->close();
    for (const auto& file : files) images.emplace_back(file->base(), file->base() + file->size());
  }
  ~Stage() {
    for (const std::string& path : paths) ::unlink(path.c_str());
    ::rmdir(directory.c_str());
  }

  AttachOptions options() const {
    AttachOptions options;
    options.control_dir = directory;
    options.heartbeat_ms = 250;  // hardly any but the attach's own: the rest is fuzz_metadata's
    options.dead_after_ms = 1'000;  // a joiner waits for so long for hosts that are not there
    options.lease_ms = 1'000;
    options.lock_timeout_ms = 10;
    options.open_timeout_ms = 10;
    options.copy_threads = 1;
    return options;
  }

  std::shared_ptr<PoolCore> attach() const { return attach_pool(open_pool(paths, 10), options()); }

  PutResult put(PoolCore& pool, std::uint32_t key) const {
    KeyBatch batch;
    batch.add(content.record(key));
    const std::span<const std::byte> source = content.payload(key);
    PutResult result{};
    pool.put(batch, {&source, 1}, {}, 0, {&result, 1});
    return result;
  }

  void restore() {
    for (std::size_t d = 0; d < files.size(); ++d) {
      std::memcpy(files[d]->base(), images[d].data(), images[d].size());
    }
  }

  static constexpr std::uint64_t kBytes = 1 << 20;
  std::string directory;
  std::vector<std::string> paths;
  Content content;
  std::vector<std::shared_ptr<Mapping>> files;
  std::vector<std::vector<std::byte>> images;
};

/// Ends with the process, so that its files go.
Stage& stage() {
  static Stage the;
  return the;
}

void damage(Input& in) {
  Stage& s = stage();
  std::byte* base = s.files[0]->base();
  const std::uint8_t what = in.byte();
  std::uint64_t at = 0;
  switch (what % 8) {
    case 0:  // the numbers of the geometry
    case 1:
    case 2:
      at = 8 + in.byte() % 46 * 4;
      break;
    case 3:  // the device table
      at = offsetof(Superblock, devices) + in.byte() % 24 * 4;
      break;
    case 4:
      at = in.take<std::uint16_t>() % sizeof(Superblock);
      break;
    case 5:  // the other device's superblock
      base = s.files[1]->base();
      at = in.take<std::uint16_t>() % sizeof(Superblock);
      break;
    default:  // host pages, claims, whatever follows
      at = sizeof(Superblock) + in.take<std::uint16_t>() % (48 << 10);
      break;
  }
  auto* superblock = reinterpret_cast<Superblock*>(base);
  switch (what >> 4 & 3) {
    case 0: {
      const auto value = in.take<std::uint64_t>();
      std::memcpy(base + at, &value, 8);
      break;
    }
    case 1: {
      const auto value = in.take<std::uint32_t>();
      std::memcpy(base + at, &value, 4);
      break;
    }
    case 2: {  // near the bounds, where mistakes are
      std::uint64_t value = 0;
      std::memcpy(&value, base + at / 8 * 8, 8);
      value += static_cast<std::uint64_t>(static_cast<std::int64_t>(static_cast<std::int8_t>(in.byte())));
      std::memcpy(base + at / 8 * 8, &value, 8);
      break;
    }
    default: {
      const std::uint64_t value = std::uint64_t{1} << (in.byte() & 63);
      std::memcpy(base + at, &value, 8);
      break;
    }
  }
  if (!(what & 8)) superblock->crc = superblock_crc(*superblock);
}

void use(PoolCore& pool) {
  const Stage& s = stage();
  const KeyBatch& keys = s.content.keys();
  std::vector<std::shared_ptr<Lease>> leases;
  pool.lease(keys, false, leases);
  std::uint64_t sum = 0;
  for (const auto& lease : leases) {
    if (!lease) continue;
    const std::byte* at = pool.address_of(*lease);
    for (std::uint64_t i = 0; i < lease->size; i += 64) sum += std::to_integer<std::uint64_t>(at[i]);
    sum += std::to_integer<std::uint64_t>(at[lease->size - 1]) + pool.valid(*lease);
    pool.release(lease);
  }
  for (std::uint32_t k = 10; k < 18; ++k) {
    try {
      s.put(pool, k);
    } catch (const Error&) {
    }
  }
  std::vector<std::vector<std::byte>> bytes(keys.size(), std::vector<std::byte>(64 << 10));
  std::vector<std::span<std::byte>> buffers(bytes.begin(), bytes.end());
  std::vector<std::int64_t> copied(keys.size());
  try {
    pool.read_into(keys, buffers, copied);
  } catch (const Error&) {
  }
  std::uint32_t cursor = 0;
  for (const Entry& entry : pool.list(cursor, 100'000)) sum += entry.size;
  sum += pool.check().problems + pool.occupancy().chunks + pool.hosts().size();
  pool.touch(keys.prints);
  pool.pin_prefix(keys);
  pool.unpin_all();
  pool.remove(std::span(keys.prints).first(3));
  pool.evict(10'000);
  pool.clear();
  static volatile std::uint64_t seen = 0;
  seen = seen + sum;
}

}  // namespace
}  // namespace fuzz

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::tally.count(size);
  fuzz::stage().restore();
  fuzz::Input in(data, size);
  for (int i = 0; i < 24 && !in.empty(); ++i) fuzz::damage(in);
  try {
    const auto memory = beluga::open_pool(fuzz::stage().paths, 10);
    const fuzz::GuardPages first(*memory->devices()[0]);
    const fuzz::GuardPages second(*memory->devices()[1]);
    const auto pool = beluga::attach_pool(memory, fuzz::stage().options());
    fuzz::use(*pool);
    pool->close();
  } catch (const beluga::Error&) {
    // Refused.
  }
  return 0;
}
