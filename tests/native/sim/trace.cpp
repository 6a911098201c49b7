#include "trace.hpp"

#include <array>
#include <cinttypes>
#include <utility>

namespace sim {

namespace {

constexpr std::array<const char*, static_cast<std::size_t>(Did::kCount)> kNames = {
    "load",
    "store",
    "nt store",
    "cas",
    "cas failed",
    "fetch-op",
    "clwb",
    "clflushopt",
    "load back",
    "sfence",
    "mfence",
    "~ drained",
    "~ nt drained",
    "~ cleaned",
    "~ flushed",
    "~ load back answered",
    "~ evicted",
    "~ dropped",
    "~ prefetched",
    "~ ARRIVED",
    "~ lost",
    "sleep",
    "wakes",
    "waits for",
    "lock",
    "lock: owner died",
    "lock: timed out",
    "unlock",
    "starts",
    "ends",
    "KILLED",
    "PAUSED",
    "RESUMED",
    "HOST KILLED",
    "HOST BOOTED",
    "HOST PAUSED",
    "HOST RESUMED",
    "dma starts",
    "~ dma wrote",
    "~ dma read",
    "dma done",
    "switched off",
    "--",
};

constexpr const char* kFrom[] = {"",
                                 "from own store buffer",
                                 "from the host's cache",
                                 "STALE, from the host's cache",
                                 "from the device",
                                 ""};

}  // namespace

void Trace::note(std::string text, std::uint16_t host, std::uint16_t fiber) {
  ring_[count_ % ring_.size()].text = std::move(text);
  Event event;
  event.host = host;
  event.fiber = fiber;
  record(event);
}

std::string Trace::name_of(const Event& event) const {
  char text[64];
  switch (event.space) {
    case Space::device:
      if (device_name) return device_name(event.at);
      std::snprintf(text, sizeof text, "device+0x%" PRIx64, event.at);
      return text;
    case Space::control:
      if (control_name) return control_name(event.host, event.at);
      std::snprintf(text, sizeof text, "control+0x%" PRIx64, event.at);
      return text;
    case Space::other:
      return "(process memory)";
    case Space::none:
      return "";
  }
  return "";
}

void Trace::print(std::FILE* to, const Recorded& recorded) const {
  const Event& e = recorded.event;
  char host[16] = "";
  if (e.host != 0xffff) std::snprintf(host, sizeof host, "h%u", e.host);
  const char* who = e.fiber < fiber_names.size() ? fiber_names[e.fiber].c_str() : "";
  std::fprintf(to, "%9" PRIu64 " %14.3f us  %-4s %-18s %-20s ", recorded.moment.step,
               static_cast<double>(recorded.moment.ns) / 1000.0, host, who,
               kNames[static_cast<std::size_t>(e.did)]);
  if (e.did == Did::note) {
    std::fprintf(to, "%s\n", recorded.text.c_str());
    return;
  }
  std::fprintf(to, "%s", name_of(e).c_str());
  if (e.bytes) std::fprintf(to, " = 0x%" PRIx64, e.value);
  if (e.did == Did::exchanged || e.did == Did::fetched)
    std::fprintf(to, " (was 0x%" PRIx64 ")", e.other);
  if (e.did == Did::not_exchanged) std::fprintf(to, " (is 0x%" PRIx64 ")", e.other);
  if (e.did == Did::slept || e.did == Did::waits) std::fprintf(to, " %" PRIu64 " us", e.value);
  if (e.from != From::none) std::fprintf(to, "  %s", kFrom[static_cast<std::size_t>(e.from)]);
  if (e.from == From::stale_cache) std::fprintf(to, "; the device has 0x%" PRIx64, e.other);
  std::fputc('\n', to);
}

void Trace::print_last(std::FILE* to) const {
  const std::uint64_t n = ring_.size();
  for (std::uint64_t i = count_ > n ? count_ - n : 0; i < count_; ++i) print(to, ring_[i % n]);
  std::fflush(to);
}

}  // namespace sim
