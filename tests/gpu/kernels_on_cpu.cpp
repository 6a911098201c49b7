// What fused_copy.cu needs of CUDA, for a C++ compiler: threads run one after the other.
#include <cstdint>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)

struct alignas(8) uint2 {
  std::uint32_t x, y;
};
struct alignas(16) uint4 {
  std::uint32_t x, y, z, w;
};
struct Dimension {
  unsigned x = 1;
};

inline Dimension gridDim, blockDim, blockIdx, threadIdx;

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}

#include "fused_copy.cu"

template <class Kernel>
static void run(unsigned blocks, unsigned threads, Kernel&& kernel) {
  gridDim.x = blocks;
  blockDim.x = threads;
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) kernel();
  }
}

template <class T>
static T* at(u64 address) {
  return reinterpret_cast<T*>(address);
}

extern "C" void run_copy_fragments(unsigned blocks, unsigned threads, const u64* a) {
  run(blocks, threads,
      [a] { copy_fragments(at<u64>(a[0]), at<u64>(a[1]), a[2], a[3], a[4], a[5]); });
}

extern "C" void run_copy_paged(unsigned blocks, unsigned threads, const u64* a) {
  run(blocks, threads, [a] {
    copy_paged(at<u64>(a[0]), at<long long>(a[1]), at<Chunk>(a[2]), unsigned(a[3]), a[4],
               unsigned(a[5]), a[6], a[7], a[8], a[9], a[10], unsigned(a[11]), at<unsigned>(a[12]));
  });
}
