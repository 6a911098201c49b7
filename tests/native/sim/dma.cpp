#include "dma.hpp"

#include <algorithm>
#include <cstring>

namespace sim {

void advance(Dma& dma, Setting& setting) {
  if (!dma.lines.empty()) {
    HostMemory& memory = dma.process->host.memory;
    const std::uint32_t i = setting.rng.below(static_cast<std::uint32_t>(dma.lines.size()));
    const std::uint32_t line = dma.lines[i];
    dma.lines[i] = dma.lines.back();
    dma.lines.pop_back();
    const std::uint64_t begin = std::uint64_t{line} * kLineBytes;
    const std::uint64_t from = std::max(begin, dma.offset);
    const std::uint64_t to = std::min(begin + kLineBytes, dma.offset + dma.data.size());
    const std::uint64_t bytes = to - from;
    std::byte* const data = dma.data.data() + (from - dma.offset);
    alignas(8) std::byte whole[kLineBytes] = {};
    if (!dma.write) {
      memory.snoop(line, whole);
      std::memcpy(data, whole + (from - begin), bytes);
    } else if (setting.config.ddio) {
      memory.write(from, static_cast<std::uint32_t>(bytes), data);
    } else {
      std::memcpy(whole + (from - begin), data, bytes);
      const ByteMask bits = bytes == kLineBytes ? kAllBytes : (ByteMask{1} << bytes) - 1;
      memory.write_around(line, bits << (from - begin), whole);
    }
    Event event;
    event.did = dma.write ? Did::dma_wrote : Did::dma_read;
    event.space = Space::device;
    event.host = dma.process->host.id;
    event.at = from;
    setting.trace.record(event);
    if (dma.write && setting.watches.any(line)) {
      for (std::uint64_t at = from; at < to; at += 8) {
        const std::uint64_t part = std::min<std::uint64_t>(8, to - at);
        std::uint64_t value = 0;
        std::memcpy(&value, dma.data.data() + (at - dma.offset), part);
        setting.watches.tell({Seen::Stage::visible, dma.process->host.id, 0xffff,
                              static_cast<std::uint32_t>(part), at, value, 0});
      }
    }
  }
  dma.done = dma.lines.empty();
}

}  // namespace sim
