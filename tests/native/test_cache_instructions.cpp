#include "cache_instructions.hpp"

#include <fstream>
#include <sstream>
#include <string>

#include "errors.hpp"
#include "format.hpp"
#include "pool_core.hpp"
#include "scratch.hpp"

/// Which CPUs may take part in a noncoherent pool, and what the others are told.

namespace {

using namespace beluga;

bool kernel_says(const std::string& flag) {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("flags", 0) != 0) continue;
    std::istringstream words(line);
    for (std::string word; words >> word;) {
      if (word == flag) return true;
    }
    return false;
  }
  return false;
}

void instructions_are_those_of_the_cpu() {
  const CacheInstructions have = CacheInstructions::of_this_cpu();
#if defined(__x86_64__)
  CHECK_EQ(have.clflush, kernel_says("clflush"));
  CHECK_EQ(have.clflushopt, kernel_says("clflushopt"));
  CHECK_EQ(have.clwb, kernel_says("clwb"));
#else
  CHECK(!have.clflush && !have.clflushopt && !have.clwb);
  static_cast<void>(kernel_says);
#endif
}

void a_machine_that_cannot_is_refused(const std::string& directory) {
  FormatOptions options;
  options.max_hosts = 2;
  options.extent_size = 64 << 10;
  options.visibility = VisibilityMode::noncoherent;
  const std::string paths[] = {directory + "/pool"};
  format_pool(paths, 1 << 20, options);
  try {
    attach_pool(open_pool(paths, 1000), AttachOptions{});
    CHECK(*why_not_noncoherent() == 0);
  } catch (const Error& error) {
    CHECK(error.kind == ErrorKind::unsupported);
    CHECK(*why_not_noncoherent() != 0);
    CHECK(std::string(error.what()).find("visibility=noncoherent, and this machine cannot take part: it is only "
                                         "written for x86-64 CPUs") != std::string::npos);
  }
}

}  // namespace

int main() {
  return scratch::run([](const std::string& directory) {
    instructions_are_those_of_the_cpu();
    a_machine_that_cannot_is_refused(directory);
  });
}
