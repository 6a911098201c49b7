// Runs a fuzz target without libFuzzer, where only another compiler is at hand: replays inputs, then goes on with
// random changes of them. It understands the options of libFuzzer that it needs:
//
//   fuzz_x [-max_total_time=SECONDS] [-max_len=BYTES] [-timeout=SECONDS] [-seed=N] [-artifact_prefix=PATH] INPUTS...
//
// INPUTS are files, and directories of files.

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

#if defined(__SANITIZE_ADDRESS__)
#define FUZZ_ADDRESS_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define FUZZ_ADDRESS_SANITIZER 1
#endif
#endif
#ifdef FUZZ_ADDRESS_SANITIZER
extern "C" void __sanitizer_set_death_callback(void (*callback)());
#endif

namespace {

using Bytes = std::vector<std::uint8_t>;

std::map<std::string, std::string> options = {
    {"max_total_time", "0"}, {"max_len", "600"}, {"timeout", "20"}, {"seed", "0"}, {"artifact_prefix", "./"}};
Bytes current;

std::uint64_t number(const char* name) { return std::strtoull(options[name].c_str(), nullptr, 10); }

/// Keeps the input that the process dies of.
void save() {
  const std::string path = options["artifact_prefix"] + "crash-standalone";
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(current.data()), static_cast<std::streamsize>(current.size()));
  std::fprintf(stderr, "the input is in %s\n", path.c_str());
}

void die(int signal) {
  std::fprintf(stderr, signal == SIGALRM ? "timeout\n" : "aborted\n");
  save();
  ::signal(SIGABRT, SIG_DFL);
  std::abort();
}

void run(Bytes bytes) {
  current = std::move(bytes);
  ::alarm(static_cast<unsigned>(number("timeout")));
  LLVMFuzzerTestOneInput(current.data(), current.size());
  ::alarm(0);
}

Bytes read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

class Mutator {
 public:
  explicit Mutator(std::uint64_t seed) : dice_(seed) {}

  Bytes change(const std::vector<Bytes>& inputs, std::size_t most) {
    Bytes bytes = inputs.empty() ? Bytes{} : inputs[below(inputs.size())];
    for (std::size_t n = 1 + below(8); n; --n) {
      const std::size_t at = below(bytes.size() + 1);
      const auto place = bytes.begin() + static_cast<std::ptrdiff_t>(at);
      switch (below(5)) {
        case 0:
          if (at < bytes.size()) bytes[at] ^= static_cast<std::uint8_t>(1u << below(8));
          break;
        case 1:
          if (at < bytes.size()) bytes[at] = static_cast<std::uint8_t>(dice_());
          break;
        case 2:
          bytes.insert(place, static_cast<std::uint8_t>(dice_()));
          break;
        case 3:
          bytes.erase(place, place + static_cast<std::ptrdiff_t>(below(bytes.size() - at + 1) / 4));
          break;
        default:
          if (!inputs.empty()) {  // a piece of another input
            const Bytes& other = inputs[below(inputs.size())];
            const std::size_t from = below(other.size() + 1);
            const std::size_t length = below(other.size() - from + 1);
            bytes.insert(place, other.begin() + static_cast<std::ptrdiff_t>(from),
                         other.begin() + static_cast<std::ptrdiff_t>(from + length));
          }
      }
    }
    bytes.resize(std::min(bytes.size(), most));
    return bytes;
  }

 private:
  std::size_t below(std::size_t limit) { return limit ? dice_() % limit : 0; }

  std::mt19937_64 dice_;
};

}  // namespace

int main(int argc, char** argv) {
  std::vector<Bytes> inputs;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument[0] == '-') {
      const std::size_t equals = argument.find('=');
      if (equals != std::string::npos) options[argument.substr(1, equals - 1)] = argument.substr(equals + 1);
    } else if (std::filesystem::is_directory(argument)) {
      for (const auto& entry : std::filesystem::directory_iterator(argument)) inputs.push_back(read(entry.path()));
    } else {
      inputs.push_back(read(argument));
    }
  }
  ::signal(SIGALRM, die);
  ::signal(SIGABRT, die);
#ifdef FUZZ_ADDRESS_SANITIZER
  __sanitizer_set_death_callback(save);
#endif
  for (const Bytes& bytes : inputs) run(bytes);
  Mutator mutator(number("seed"));
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(number("max_total_time"));
  while (std::chrono::steady_clock::now() < end) run(mutator.change(inputs, number("max_len")));
}
