#include "probe_memory.hpp"

#include <sched.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "check.hpp"
#include "scratch_memory.hpp"

using namespace beluga;

namespace {

constexpr std::size_t kSize = 3 << 20;

int some_cpu() {
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  CHECK_EQ(sched_getaffinity(0, sizeof allowed, &allowed), 0);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(static_cast<std::size_t>(cpu), &allowed)) return cpu;
  }
  return -1;
}

/// Every line of every span is met once per pass, whatever the number of threads, and nothing around them.
void passes_meet_every_line() {
  const int cpu = some_cpu();
  const auto memory = ScratchMemory::in_dram(kSize, cpu);
  for (const ProbeOperation& operation : probe_operations()) {
    for (const std::size_t threads : {1, 2, 7}) {
      std::memset(memory->data(), 0, kSize);
      // A line is left between them, and at both ends.
      const ProbeSpan first(memory->data() + 64, (1 << 20) + 64);
      const ProbeSpan second(first.data() + first.size() + 64, memory->data() + kSize - first.data() - first.size() - 128);
      const std::vector<ProbeSpan> spans{first, second};
      const std::vector<int> cpus(threads, cpu);
      const auto passes = time_passes(spans, operation, cpus, 0.01);
      CHECK(!passes.empty());
      CHECK(passes.front().bytes <= first.size() + second.size());
      for (std::size_t at = 0; at < kSize; at += 64) {
        const std::byte* line = memory->data() + at;
        const bool inside = (line >= first.data() && line < first.data() + first.size()) ||
                            (line >= second.data() && line < second.data() + second.size());
        const bool written = std::any_of(line, line + 64, [](std::byte b) { return b != std::byte{0}; });
        CHECK_EQ(written, inside && operation.writes);
      }
    }
  }
}

void chains_and_blocks() {
  const int cpu = some_cpu();
  const auto memory = ScratchMemory::in_dram(kSize, cpu);
  const ProbeSpan span(memory->data(), kSize);
  CHECK_EQ(build_chain(span, 128, 3), kSize / 128);
  const Chase chase = chase_chain(span, 0, kSize / 128, 32, 10, cpu);
  CHECK_EQ(chase.ns.size(), kSize / 128 / 32);
  CHECK_EQ(chase.end, 0u);
  for (const ProbeOperation& operation : probe_operations()) {
    CHECK_EQ(time_blocks(span, operation, 1 << 20, 4, 10, cpu).size(), 4u);
  }
  std::memset(span.data(), 0xff, kSize);
  CHECK_THROWS_KIND(chase_chain(span, 0, 64, 32, 10, cpu), ErrorKind::pool_io);
  CHECK_THROWS_KIND(build_chain(span.subspan(8), 128, 3), ErrorKind::invalid_argument);
  CHECK_THROWS_KIND(time_blocks(span, *probe_operation("load"), 64, 1, 1, CPU_SETSIZE), ErrorKind::invalid_argument);
  CHECK(probe_operation("nothing") == nullptr);
}

}  // namespace

int main() {
  passes_meet_every_line();
  chains_and_blocks();
}
