// Copies between the pool's slots and GPU memory: any number of pieces in one launch.
//
// Compiled at run time (copy_kernels.py) with WIDTH, the bytes of one access: 1, 2, 4, 8 or 16, and
// UNROLL, the accesses that each thread has under way at once. The bus wants about 100 KB on its
// way all the time (50 GB/s for 2 us); 16 blocks of 1024 threads with 4 x 16 bytes have 1 MiB.
//
// Warps work, each for itself, on tiles of 32 x UNROLL accesses, so that neither a small fragment
// nor the end of a large one leaves many threads idle:
//
//   tile    |<-------------------- 32 x UNROLL x WIDTH bytes -------------------->|
//   access  |lane 0|lane 1|...|lane 31|lane 0|lane 1|...|lane 31|...
//           |<---- at once, UNROLL ---->|
//
// There is no shared memory, no barrier and no exchange between threads. The tests compile this
// file as C++ and run thread after thread.

typedef unsigned long long u64;

constexpr unsigned kLanes = 32;
constexpr unsigned kTile = kLanes * UNROLL;

template <unsigned width>
struct Access;
template <>
struct Access<1> {
  typedef unsigned char Type;
};
template <>
struct Access<2> {
  typedef unsigned short Type;
};
template <>
struct Access<4> {
  typedef unsigned int Type;
};
template <>
struct Access<8> {
  typedef uint2 Type;
};
template <>
struct Access<16> {
  typedef uint4 Type;
};
typedef Access<WIDTH>::Type Word;

// What is copied is read once. Nobody writes it meanwhile: chunks are immutable, and the KV of
// finished blocks is.
__device__ __forceinline__ Word load(u64 address) {
#if defined(__CUDA_ARCH__) && WIDTH == 16
  Word word;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(word.x), "=r"(word.y), "=r"(word.z), "=r"(word.w)
               : "l"(address));
  return word;
#else
  return *reinterpret_cast<const Word*>(address);
#endif
}

__device__ __forceinline__ void store(u64 address, Word word) {
  *reinterpret_cast<Word*>(address) = word;
}

// value / divisor by a multiplication: magic is 2^64 / divisor, rounded up. Exact as long as
// value * divisor < 2^64, which the caller has checked. A divisor of 1 has no magic.
__device__ __forceinline__ u64 quotient(u64 value, u64 divisor, u64 magic) {
  return divisor == 1 ? value : __umul64hi(value, magic);
}

__device__ __forceinline__ u64 first_tile() {
  return (u64(blockIdx.x) * blockDim.x + threadIdx.x) / kLanes;
}

__device__ __forceinline__ u64 tile_step() { return u64(gridDim.x) * blockDim.x / kLanes; }

// Copies `total` accesses of fragments that have `per_fragment` accesses each, the last of which
// may be shorter: fragment i has `fragment_bytes` bytes and goes from from[i] to to[i]. Addresses
// that are no multiples of WIDTH are copied byte by byte.
extern "C" __global__ void __launch_bounds__(1024)
    copy_fragments(const u64* to, const u64* from, u64 total, u64 fragment_bytes, u64 per_fragment,
                   u64 magic) {
  const unsigned lane = threadIdx.x % kLanes;
  for (u64 tile = first_tile(); tile * kTile < total; tile += tile_step()) {
    u64 target[UNROLL], source[UNROLL];
    unsigned bytes[UNROLL];
    Word words[UNROLL];
#pragma unroll
    for (unsigned k = 0; k < UNROLL; ++k) {
      const u64 access = tile * kTile + k * kLanes + lane;
      bytes[k] = 0;
      if (access < total) {
        const u64 fragment = quotient(access, per_fragment, magic);
        const u64 offset = (access - fragment * per_fragment) * WIDTH;
        const u64 left = fragment_bytes - offset;
        target[k] = to[fragment] + offset;
        source[k] = from[fragment] + offset;
        bytes[k] = left < WIDTH ? unsigned(left) : WIDTH;
        if ((target[k] | source[k]) % WIDTH != 0) bytes[k] |= kLanes;  // misaligned
      }
    }
#pragma unroll
    for (unsigned k = 0; k < UNROLL; ++k) {
      if (bytes[k] == WIDTH) words[k] = load(source[k]);
    }
#pragma unroll
    for (unsigned k = 0; k < UNROLL; ++k) {
      if (bytes[k] == WIDTH) {
        store(target[k], words[k]);
      } else {
        for (unsigned i = 0; i < bytes[k] % kLanes; ++i) {
          reinterpret_cast<unsigned char*>(target[k])[i] =
              reinterpret_cast<const unsigned char*>(source[k])[i];
        }
      }
    }
  }
}

// One chunk in a slot, in accesses of WIDTH bytes. A plane is one layer's keys, or its values:
//
//   slot    |keys of layer 0, all tokens|keys of layer 1|...|values of layer 0|...
//   plane   |token 0|token 1|...   each as it lies in the paged cache
struct Chunk {
  u64 slot;         // address
  u64 total;        // of the chunk
  u64 plane;        // of a plane
  u64 plane_magic;  // to divide by that
  u64 first;        // of its first token, counted from the beginning of the table of blocks
  u64 first_tile;   // tiles of the chunks before
};

// Copies chunks to or from a paged KV cache. Tokens that follow one another lie in the blocks
// table[0], table[1], ...; block b of layer l begins at layers[l] + b * block_stride, and its
// values `half_stride` bytes after its keys. A block that the cache does not have is left out, and
// *fault set.
extern "C" __global__ void __launch_bounds__(1024)
    copy_paged(const u64* layers, const long long* table, const Chunk* chunks, unsigned chunk_count,
               u64 tiles, unsigned layer_count, u64 half_stride, u64 block_stride, u64 block_count,
               u64 block_accesses, u64 block_magic, unsigned to_slots, unsigned* fault) {
  const unsigned lane = threadIdx.x % kLanes;
  for (u64 tile = first_tile(); tile < tiles; tile += tile_step()) {
    unsigned low = 0, high = chunk_count;  // the last chunk whose first tile is not behind this
    while (high - low > 1) {
      const unsigned middle = low + (high - low) / 2;
      if (chunks[middle].first_tile <= tile) {
        low = middle;
      } else {
        high = middle;
      }
    }
    const Chunk chunk = chunks[low];
    u64 target[UNROLL], source[UNROLL];
    bool wanted[UNROLL];
    Word words[UNROLL];
#pragma unroll
    for (unsigned k = 0; k < UNROLL; ++k) {
      const u64 access = (tile - chunk.first_tile) * kTile + k * kLanes + lane;
      wanted[k] = access < chunk.total;
      if (wanted[k]) {
        const u64 plane = quotient(access, chunk.plane, chunk.plane_magic);
        const u64 place = chunk.first + (access - plane * chunk.plane);
        const u64 entry = quotient(place, block_accesses, block_magic);
        const u64 block = u64(table[entry]);
        wanted[k] = block < block_count;
        if (wanted[k]) {
          const u64 paged = layers[unsigned(plane) % layer_count] +
                            unsigned(plane) / layer_count * half_stride + block * block_stride +
                            (place - entry * block_accesses) * WIDTH;
          const u64 slot = chunk.slot + access * WIDTH;
          target[k] = to_slots ? slot : paged;
          source[k] = to_slots ? paged : slot;
        } else if (fault) {
          *fault = 1;
        }
      }
    }
#pragma unroll
    for (unsigned k = 0; k < UNROLL; ++k) {
      if (wanted[k]) words[k] = load(source[k]);
    }
#pragma unroll
    for (unsigned k = 0; k < UNROLL; ++k) {
      if (wanted[k]) store(target[k], words[k]);
    }
  }
}
