#pragma once

#include <cstdlib>
#include <string>

namespace fuzz {

/// A fresh directory on tmpfs, in $FUZZ_DIRECTORY if that is set: whoever sets it removes what a crash leaves.
inline std::string scratch_directory() {
  const char* parent = std::getenv("FUZZ_DIRECTORY");
  std::string directory = std::string(parent ? parent : "/dev/shm") + "/beluga-fuzz-XXXXXX";
  if (!::mkdtemp(directory.data())) std::abort();
  return directory;
}

}  // namespace fuzz
