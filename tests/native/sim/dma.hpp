#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "actors.hpp"

namespace sim {

/// A transfer by a GPU of a process. It goes on when the process is killed, line by line in any
/// order.
struct Dma {
  Process* process;
  bool write;
  bool done = false;
  std::uint64_t offset;
  std::vector<std::byte> data;       // GPU memory
  std::byte* copy_to = nullptr;      // where a read puts it in the end
  std::vector<std::uint32_t> lines;  // still to be moved
};

/// Moves one line, whichever.
void advance(Dma& dma, Setting& setting);

}  // namespace sim
