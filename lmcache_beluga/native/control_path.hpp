#pragma once

#include <cstdint>
#include <string>

namespace beluga {

/// Where the processes of one machine keep the control blocks of the pools they use.
inline std::string default_control_dir() { return "/dev/shm"; }

/// The control block of one host of one pool.
inline std::string control_path(const std::string& dir, const std::uint8_t (&uuid)[16], std::uint32_t host) {
  static constexpr char digits[] = "0123456789abcdef";
  std::string path = dir + "/beluga.";
  for (const std::uint8_t byte : uuid) {
    path += digits[byte >> 4];
    path += digits[byte & 15];
  }
  return path + "." + std::to_string(host) + ".ctl";
}

}  // namespace beluga
