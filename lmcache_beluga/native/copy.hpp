#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace beluga {

/// One contiguous copy of `n` bytes. `dst` and `src` do not overlap; any alignment.
struct CopyPart {
  void* dst;  // null: nothing is copied, only the checksum taken
  const void* src;
  std::size_t n;
  /// Where to put checksum64() of the bytes, taken while they are in the cache anyway. Such a part is not divided
  /// among threads: see PayloadTransfer. Copies out of the pool are judged by what has arrived.
  std::uint64_t* sum = nullptr;
};

/// Which end of a copy lies in the pool. What is streamed out of it is more than the caches hold, or nobody reads it
/// next.
enum class CopyDirection { to_pool, from_pool, streamed_from_pool };

/// Moves payloads between ordinary memory and the pool at memory speed.
///
/// Copies to the pool use non-temporal stores (AVX-512, AVX2 or SSE2, chosen at run time): a chunk
/// does not pass through the cache that the model is using. Each ends with SFENCE, in every thread
/// that took part, so the bytes are ordered before whatever the caller stores next. Bytes before
/// the first and after the last 64-byte line boundary of `dst` are written with ordinary stores: on
/// a non-coherent pool the caller flushes those two lines. Copies from the pool use ordinary
/// stores, since whoever asked for the bytes reads them next; unless they are to be streamed, too.
///
/// Copies of more than 1 MiB are cut into pieces that the calling thread and a few native threads
/// share. The threads start with the first such copy, sleep between copies, and end with the
/// engine. In a child of fork(), where they do not exist, the calling thread does all the work.
///
/// All methods are thread-safe, and return when every byte has been copied. They throw nothing: a
/// thread that cannot be started leaves its share to the others. A fault of the memory itself
/// (SIGBUS) is the caller's to prevent.
class CopyEngine {
 public:
  /// `threads` counts the calling thread: 1 always copies inline, 0 stands for min(4, CPUs that
  /// this process may run on). Throws Error(invalid_argument) unless 0 <= threads <= 64.
  explicit CopyEngine(int threads = 0);
  /// Waits for the native threads. No copy may be running.
  ~CopyEngine();
  CopyEngine(const CopyEngine&) = delete;
  CopyEngine& operator=(const CopyEngine&) = delete;

  void copy_to_pool(void* dst, const void* src, std::size_t n) noexcept;
  void copy_from_pool(void* dst, const void* src, std::size_t n) noexcept;
  void copy_batch(std::span<const CopyPart> parts, CopyDirection direction) noexcept;

  /// Threads that share a large copy, the calling one included.
  [[nodiscard]] int threads() const noexcept;

 private:
  class Crew;
  std::unique_ptr<Crew> crew_;
};

}  // namespace beluga
