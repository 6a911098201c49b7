#include <dirent.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "copy.hpp"
#include "copy_kernels.hpp"

using namespace beluga;

namespace {

constexpr std::size_t kMiB = 1 << 20;

std::vector<std::byte> random_bytes(std::size_t n, std::uint64_t seed) {
  std::mt19937_64 random(seed);
  std::vector<std::byte> bytes(n);
  for (std::size_t i = 0; i < n; i += 8) {
    const std::uint64_t word = random();
    std::memcpy(bytes.data() + i, &word, std::min<std::size_t>(8, n - i));
  }
  return bytes;
}

bool same(const void* a, const void* b, std::size_t n) { return std::memcmp(a, b, n) == 0; }

/// Threads of this process that carry the engine's name.
int copy_threads() {
  int count = 0;
  DIR* tasks = opendir("/proc/self/task");
  CHECK(tasks != nullptr);
  while (const dirent* entry = readdir(tasks)) {
    std::ifstream comm("/proc/self/task/" + std::string(entry->d_name) + "/comm");
    std::string name;
    if (std::getline(comm, name) && name == "beluga-copy") ++count;
  }
  closedir(tasks);
  return count;
}

/// A joined thread may stay listed for a moment.
bool copy_threads_gone() {
  for (int attempt = 0; attempt < 500; ++attempt) {
    if (copy_threads() == 0) return true;
    usleep(10'000);
  }
  return false;
}

// Every alignment of both ends around a line, and lengths around each loop's step, with guard bytes
// on both sides.
void kernel_copies_exactly(CopyKernel kernel) {
  const auto source = random_bytes(16384, 1);
  std::vector<std::byte> target(16384);
  const std::size_t lengths[] = {0,   1,   63,  64,  65,  127,  128,  255,  256,
                                 257, 319, 320, 511, 600, 4095, 4096, 4097, 9000};
  for (std::size_t to = 64; to < 128; to += (to % 16 == 0 ? 1 : 5)) {
    for (const std::size_t from : {0U, 1U, 8U, 31U, 63U}) {
      for (const std::size_t n : lengths) {
        std::memset(target.data(), 0xEE, target.size());
        kernel(target.data() + to, source.data() + from, n);
        CHECK(same(target.data() + to, source.data() + from, n));
        for (std::size_t i = 0; i < to; ++i) CHECK(target[i] == std::byte{0xEE});
        for (std::size_t i = to + n; i < to + n + 128; ++i) CHECK(target[i] == std::byte{0xEE});
      }
    }
  }
}

void kernels_copy_exactly() {
  CHECK(!streaming_kernels().empty());
  CHECK_EQ(std::string(streaming_kernels().back().name), "portable");
  for (const NamedCopyKernel& kernel : streaming_kernels()) kernel_copies_exactly(kernel.run);
  kernel_copies_exactly(from_pool_kernel());
}

void large_copies_arrive_whole(CopyEngine& engine) {
  const auto source = random_bytes(9 * kMiB + 77, 2);
  for (const std::size_t n : {kMiB, kMiB + 1, 2 * kMiB - 1, 5 * kMiB + 13, 9 * kMiB}) {
    for (const std::size_t shift : {0U, 1U, 33U}) {
      std::vector<std::byte> target(n + 128, std::byte{0xEE});
      engine.copy_to_pool(target.data() + shift, source.data() + shift, n);
      CHECK(same(target.data() + shift, source.data() + shift, n));
      CHECK(target[n + shift] == std::byte{0xEE});
      std::fill(target.begin(), target.end(), std::byte{0xEE});
      engine.copy_from_pool(target.data() + shift, source.data(), n);
      CHECK(same(target.data() + shift, source.data(), n));
      CHECK(target[n + shift] == std::byte{0xEE});
    }
  }
}

// Parts of all sizes, empty ones too, packed without gaps, so that a byte too many in one shows in
// the next.
void batches_arrive_whole(CopyEngine& engine) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 6; ++round) {
    std::vector<std::size_t> sizes;
    std::size_t total = 0;
    while (total < 6 * kMiB) {
      const std::size_t n = random() % 8 == 0 ? random() % (3 * kMiB) : random() % 70'000;
      sizes.push_back(random() % 16 == 0 ? 0 : n);
      total += sizes.back();
    }
    const auto source = random_bytes(total, random());
    std::vector<std::byte> target(total);
    std::vector<CopyPart> parts;
    std::size_t at = 0;
    for (const std::size_t n : sizes) {
      parts.push_back({target.data() + at, source.data() + at, n});
      at += n;
    }
    engine.copy_batch(parts, round % 2 == 0 ? CopyDirection::to_pool : CopyDirection::from_pool);
    CHECK(same(target.data(), source.data(), total));
  }
  engine.copy_batch({}, CopyDirection::to_pool);
  engine.copy_to_pool(nullptr, nullptr, 0);
}

void callers_do_not_disturb_each_other() {
  CopyEngine engine(3);
  std::atomic<int> right{0};
  std::vector<std::thread> callers;
  for (std::uint64_t caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      const auto source = random_bytes(3 * kMiB + caller * 100, 10 + caller);
      for (int round = 0; round < 10; ++round) {
        std::vector<std::byte> target(source.size());
        engine.copy_to_pool(target.data(), source.data(), source.size());
        if (same(target.data(), source.data(), source.size())) ++right;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK_EQ(right.load(), 40);
}

void threads_start_late_and_end_with_the_engine() {
  const auto source = random_bytes(4 * kMiB, 4);
  std::vector<std::byte> target(source.size());
  {
    CopyEngine engine(4);
    CHECK_EQ(engine.threads(), 4);
    CHECK_EQ(copy_threads(), 0);
    engine.copy_to_pool(target.data(), source.data(), kMiB / 4);
    CHECK_EQ(copy_threads(), 0);
    engine.copy_to_pool(target.data(), source.data(), source.size());
    CHECK_EQ(copy_threads(), 3);
    engine.copy_from_pool(target.data(), source.data(), source.size());
    CHECK_EQ(copy_threads(), 3);
  }
  CHECK(copy_threads_gone());
  CopyEngine alone(1);
  alone.copy_to_pool(target.data(), source.data(), source.size());
  CHECK_EQ(copy_threads(), 0);
}

/// Forks, runs `body` in the child, and returns whether it returned true there.
template <typename Body>
bool in_child(Body body) {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) _exit(body() ? 0 : 1);
  int status = -1;
  CHECK_EQ(waitpid(child, &status, 0), child);
  return status == 0;
}

// The child has the engine but not its threads: it copies by itself, and may destroy the engine.
void works_inline_in_a_forked_child() {
  const auto source = random_bytes(4 * kMiB, 5);
  std::vector<std::byte> target(source.size());
  auto engine = std::make_unique<CopyEngine>(3);
  engine->copy_to_pool(target.data(), source.data(), source.size());
  std::fill(target.begin(), target.end(), std::byte{0});
  CHECK(in_child([&] {
    engine->copy_to_pool(target.data(), source.data(), source.size());
    const bool good = same(target.data(), source.data(), source.size()) && copy_threads() == 0;
    engine.reset();
    return good;
  }));
  engine->copy_to_pool(target.data(), source.data(), source.size());
  CHECK(same(target.data(), source.data(), source.size()));
}

// An engine belongs to the process that made it, even if it had no threads yet; the child's own one
// has.
void belongs_to_the_process_that_made_it() {
  CHECK(copy_threads_gone());
  const auto source = random_bytes(4 * kMiB, 6);
  std::vector<std::byte> target(source.size());
  CopyEngine engine(2);
  CHECK(in_child([&] {
    engine.copy_to_pool(target.data(), source.data(), source.size());
    bool good = same(target.data(), source.data(), source.size()) && copy_threads() == 0;
    std::fill(target.begin(), target.end(), std::byte{0});
    CopyEngine own(2);
    own.copy_from_pool(target.data(), source.data(), source.size());
    good = good && same(target.data(), source.data(), source.size());
    return good && copy_threads() == 1;
  }));
}

void thread_count_is_checked() {
  CHECK_THROWS_KIND(CopyEngine(-1), ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(CopyEngine(65), ErrorKind::invalid_argument);
  const CopyEngine automatic(0);
  CHECK(automatic.threads() >= 1);
  CHECK(automatic.threads() <= 4);
}

}  // namespace

int main() {
  kernels_copy_exactly();
  for (const int threads : {1, 2, 4}) {
    CopyEngine engine(threads);
    large_copies_arrive_whole(engine);
    batches_arrive_whole(engine);
  }
  callers_do_not_disturb_each_other();
  threads_start_late_and_end_with_the_engine();
  works_inline_in_a_forked_child();
  belongs_to_the_process_that_made_it();
  thread_count_is_checked();
}
