#include "probe_memory.hpp"

#include <algorithm>
#include <array>
#include <atomic>
#include <barrier>
#include <chrono>
#include <limits>
#include <numeric>
#include <random>
#include <string>

#include "errors.hpp"
#include "pinned_threads.hpp"

namespace beluga {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kLineBytes = 64;
constexpr std::size_t kPiece = 256 << 10;
constexpr std::uint64_t kMaxLinks = std::uint64_t{1} << 28;
constexpr std::size_t kMaxPasses = 1000;
constexpr std::uint32_t kMaxSamples = 1'000'000;

[[noreturn]] void refuse(const std::string& what) { throw Error(ErrorKind::invalid_argument, what); }

void check(ProbeSpan span) {
  if (span.empty() || reinterpret_cast<std::uintptr_t>(span.data()) % kLineBytes != 0 || span.size() % kLineBytes) {
    refuse("probes take whole 64-byte lines: this memory does not begin and end at such a boundary");
  }
}

Clock::duration checked_time(double seconds) {
  if (!(seconds > 0 && seconds <= kMaxProbeSeconds)) {
    refuse("a probe takes more than 0 and at most " + std::to_string(static_cast<int>(kMaxProbeSeconds)) + " seconds");
  }
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

double ns_of(Clock::duration time) { return std::chrono::duration<double, std::nano>(time).count(); }

/// What two readings of the clock with nothing in between differ by.
double clock_ns() {
  double least = 1e9;
  for (int i = 0; i < 1000; ++i) {
    const auto start = Clock::now();
    least = std::min(least, ns_of(Clock::now() - start));
  }
  return least;
}

std::uint64_t follow(const std::byte* base, std::uint64_t at) {
  return *reinterpret_cast<const volatile std::uint64_t*>(base + at);
}

}  // namespace

std::uint64_t build_chain(ProbeSpan span, std::size_t stride, std::uint64_t seed) {
  check(span);
  if (stride == 0 || stride % kLineBytes != 0) refuse("a chain's stride is a multiple of 64");
  const std::uint64_t links = span.size() / stride;
  if (links < 2 || links > kMaxLinks) {
    refuse("a chain has 2 to " + std::to_string(kMaxLinks) + " links, not " + std::to_string(links));
  }
  std::vector<std::uint32_t> next(links);
  std::iota(next.begin(), next.end(), 0U);
  std::mt19937_64 random(seed);
  // Sattolo's shuffle: exactly one cycle.
  for (std::uint64_t i = links - 1; i > 0; --i) std::swap(next[i], next[random() % i]);
  for (std::uint64_t i = 0; i < links; ++i) {
    *reinterpret_cast<std::uint64_t*>(span.data() + i * stride) = next[i] * std::uint64_t{stride};
  }
  flush_lines(span.data(), span.size());
  return links;
}

Chase chase_chain(ProbeSpan span, std::uint64_t start, std::uint64_t hops, std::uint64_t batch, double seconds,
                  int cpu) {
  check(span);
  const auto limit = checked_time(seconds);
  if (batch == 0 || hops < batch) refuse("a chase has at least one batch of at least one load");
  const std::uint64_t last = span.size() - sizeof(std::uint64_t);
  Chase result{.ns = {}, .end = start};
  result.ns.reserve(std::min<std::uint64_t>(hops / batch, kMaxSamples));
  const auto in_chain = [&](std::uint64_t at) { return at <= last && at % sizeof(std::uint64_t) == 0; };
  run_pinned(std::array{cpu}, [&](std::size_t) {
    flush_lines(span.data(), span.size());
    const auto deadline = Clock::now() + limit;
    for (std::uint64_t done = 0; done + batch <= hops && result.ns.size() < kMaxSamples; done += batch) {
      const auto begin = Clock::now();
      if (begin >= deadline && done > 0) break;
      // The check of each offset waits for nothing that the next load does not wait for.
      for (std::uint64_t i = 0; i < batch && in_chain(result.end); ++i) result.end = follow(span.data(), result.end);
      result.ns.push_back(ns_of(Clock::now() - begin) / static_cast<double>(batch));
      if (!in_chain(result.end)) break;
    }
  });
  if (!in_chain(result.end)) {
    throw Error(ErrorKind::pool_io, "the memory that is measured was overwritten meanwhile by somebody else");
  }
  return result;
}

std::vector<double> time_blocks(ProbeSpan span, const ProbeOperation& operation, std::size_t block,
                                std::uint32_t samples, double seconds, int cpu) {
  check(span);
  const auto limit = checked_time(seconds);
  if (block == 0 || block % kLineBytes != 0 || block > span.size()) {
    refuse("a block has whole lines, and fits into the memory that is measured");
  }
  if (samples == 0 || samples > kMaxSamples) refuse("take 1 to " + std::to_string(kMaxSamples) + " samples");
  std::vector<double> ns;
  ns.reserve(samples);
  run_pinned(std::array{cpu}, [&](std::size_t) {
    const double clock = clock_ns();
    const std::uint64_t blocks = span.size() / block;
    const auto deadline = Clock::now() + limit;
    // Odd multiples of a golden section: neighbours in time are far from each other in space.
    std::uint64_t turn = 0;
    while (ns.size() < samples && (ns.empty() || Clock::now() < deadline)) {
      turn += 0x9e3779b97f4a7c15;
      const auto scaled = static_cast<unsigned __int128>(turn) * blocks;
      std::byte* at = span.data() + static_cast<std::uint64_t>(scaled >> 64U) * block;
      operation.prepare(at, block);
      const auto start = Clock::now();
      operation.run(at, block);
      ns.push_back(std::max(0.0, ns_of(Clock::now() - start) - clock));
      if (operation.writes) flush_lines(at, block);
    }
  });
  return ns;
}

namespace {

/// The part of each span that belongs to one thread, as a list of pieces in the order in which they are taken.
std::vector<ProbeSpan> pieces_of(std::span<const ProbeSpan> spans, std::size_t thread, std::size_t threads) {
  std::vector<ProbeSpan> parts;
  std::size_t longest = 0;
  for (const ProbeSpan span : spans) {
    const std::size_t lines = span.size() / kLineBytes;
    const std::size_t from = lines * thread / threads * kLineBytes;
    const std::size_t to = lines * (thread + 1) / threads * kLineBytes;
    parts.push_back(span.subspan(from, to - from));
    longest = std::max(longest, to - from);
  }
  std::vector<ProbeSpan> pieces;
  for (std::size_t at = 0; at < longest; at += kPiece) {
    for (const ProbeSpan part : parts) {
      if (at < part.size()) pieces.push_back(part.subspan(at, std::min(kPiece, part.size() - at)));
    }
  }
  return pieces;
}

}  // namespace

std::vector<BandwidthPass> time_passes(std::span<const ProbeSpan> spans, const ProbeOperation& operation,
                                       std::span<const int> cpus, double seconds) {
  if (spans.empty()) refuse("name some memory to measure");
  for (const ProbeSpan span : spans) check(span);
  const auto limit = checked_time(seconds);
  struct Thread {
    std::vector<ProbeSpan> pieces;
    std::uint64_t bytes = 0;
    Clock::time_point end;
  };
  std::vector<Thread> threads(cpus.size());
  for (std::size_t i = 0; i < cpus.size(); ++i) threads[i].pieces = pieces_of(spans, i, cpus.size());
  std::vector<BandwidthPass> passes;
  passes.reserve(kMaxPasses);
  const auto began = Clock::now();
  Clock::time_point start;
  bool running = false;
  bool over = false;
  // Runs in one of the threads while all others wait: before a pass, and after it.
  const auto turn = [&]() noexcept {
    running = !running;
    if (running) {
      start = Clock::now();
      return;
    }
    BandwidthPass pass{0, 0};
    for (const Thread& thread : threads) {
      pass.bytes += thread.bytes;
      pass.seconds = std::max(pass.seconds, ns_of(thread.end - start) * 1e-9);
    }
    passes.push_back(pass);
    over = Clock::now() - began >= limit || passes.size() == kMaxPasses;
  };
  std::barrier gate(static_cast<std::ptrdiff_t>(std::max<std::size_t>(1, cpus.size())), turn);
  run_pinned(cpus, [&](std::size_t i) {
    Thread& self = threads[i];
    while (!over) {
      // At most so many pieces as could be prepared in time are timed, at least one.
      std::size_t prepared = 0;
      const auto patience = Clock::now() + limit;
      while (prepared < self.pieces.size() && (prepared == 0 || Clock::now() < patience)) {
        operation.prepare(self.pieces[prepared].data(), self.pieces[prepared].size());
        ++prepared;
      }
      gate.arrive_and_wait();
      self.bytes = 0;
      self.end = start;
      const auto deadline = start + limit;
      for (std::size_t p = 0; p < prepared && (p == 0 || self.end < deadline); ++p) {
        operation.run(self.pieces[p].data(), self.pieces[p].size());
        self.bytes += self.pieces[p].size();
        self.end = Clock::now();
      }
      gate.arrive_and_wait();
    }
    if (!operation.writes) return;
    for (const ProbeSpan piece : self.pieces) flush_lines(piece.data(), piece.size());
  });
  return passes;
}

}  // namespace beluga
