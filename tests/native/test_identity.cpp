#include <cstring>

#include "small_pool.hpp"

using namespace beluga;
using namespace small_pool;

namespace {

using Core = PoolProcess<Policy>;

/// Whatever bit of it flips: the host goes on, and a few heartbeats later the line is whole.
void a_damaged_identity_is_written_again(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  publish_identity<Policy>(p.context, HostState::member, 0x5eed);
  HostIdentity* line = &p.pool->host(0)->identity;
  for (std::size_t bit = 0; bit < 60 * 8; ++bit) {
    reinterpret_cast<std::uint8_t*>(line)[bit / 8] ^= static_cast<std::uint8_t>(1 << bit % 8);
    CHECK(whose_page<Policy>(p.context) == Page::damaged);
    for (int beat = 0; beat < 3; ++beat) CHECK(p.Core::beat() == Core::Beat::fine);
    CHECK(whose_page<Policy>(p.context) == Page::ours);
    CHECK(line->key_scheme == 0x5eed || line->key_scheme == 0);
    if (line->key_scheme == 0) publish_identity<Policy>(p.context, HostState::member, 0x5eed);
  }
  CHECK_EQ(p.counted(Count::repaired), 60u * 8);
}

/// Another machine's identity is whole, and ends this host's part in the pool.
void a_foreign_identity_is_left_alone(const std::string& directory) {
  Process p(format(directory + "/pool"), directory);
  HostIdentity foreign = p.pool->host(0)->identity;
  foreign.nonce += 1;
  foreign.crc = identity_crc(foreign);
  std::memcpy(&p.pool->host(0)->identity, &foreign, sizeof(foreign));
  CHECK(whose_page<Policy>(p.context) == Page::foreign);
  for (int beat = 0; beat < 5; ++beat) CHECK(p.Core::beat() == Core::Beat::taken_over);
  CHECK(std::memcmp(&p.pool->host(0)->identity, &foreign, sizeof(foreign)) == 0);
}

void run(const std::string& directory) {
  a_damaged_identity_is_written_again(directory);
  a_foreign_identity_is_left_alone(directory);
}

}  // namespace

int main() { return scratch::run(run); }
