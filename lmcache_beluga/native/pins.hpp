#pragma once

#include <cstdint>
#include <memory>
#include <memory_resource>
#include <mutex>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "fingerprint.hpp"
#include "leases.hpp"

namespace beluga {

struct PrintHash {
  std::size_t operator()(const Fingerprint& print) const noexcept { return print.lo; }
};

/// Leases that are held for keys rather than for somebody: LMCache pins what it has looked up, and unpins by key.
/// One that nobody takes back lapses.
template <class V>
class Pins {
 public:
  Pins(const HostContext& context, Leases<V>& leases) : context_(context), leases_(leases) {}

  /// Turns the leases that there are into pins of their keys, and says how many.
  std::size_t keep(std::span<const Fingerprint> prints, std::span<const std::shared_ptr<Lease>> leases) {
    const std::lock_guard guard(mutex_);
    const std::uint64_t deadline = context_.now_ms() + context_.options.pin_timeout_ms;
    std::size_t n = 0;
    for (std::size_t i = 0; i < leases.size(); ++i) {
      if (!leases[i]) continue;
      Pin& pin = pins_[prints[i]];
      if (pin.lease && pin.lease != leases[i]) {
        // The chunk was evicted and stored again since the key was first pinned: follow the living copy.
        leases_.release(pin.lease);
        pin.lease = leases[i];
      } else if (pin.lease) {
        leases_.release(leases[i]);  // one hold serves all pins of a key
      } else {
        pin.lease = leases[i];
      }
      ++pin.count;
      pin.deadline = deadline;
      ++n;
    }
    count_ += n;
    return n;
  }

  /// Takes one pin of the key back. False: it has none.
  bool unpin(const Fingerprint& print) {
    const std::lock_guard guard(mutex_);
    const auto it = pins_.find(print);
    if (it == pins_.end()) return false;
    --count_;
    if (--it->second.count == 0) {
      leases_.release(it->second.lease);
      pins_.erase(it);
    }
    return true;
  }

  /// Takes all pins of all keys back, and says how many.
  std::size_t unpin_all() {
    const std::lock_guard guard(mutex_);
    std::vector<std::shared_ptr<Lease>> leases;
    for (auto& [print, pin] : pins_) leases.push_back(std::move(pin.lease));
    leases_.release(leases);
    pins_.clear();
    return static_cast<std::size_t>(std::exchange(count_, 0));
  }

  bool pinned(const Fingerprint& print) const {
    const std::lock_guard guard(mutex_);
    return pins_.contains(print);
  }

  std::uint64_t count() const {
    const std::lock_guard guard(mutex_);
    return count_;
  }

  /// Ends the pins that nobody has taken back, nor renewed, for pin_timeout.
  void lapse() {
    const std::uint64_t now = context_.now_ms();
    const std::lock_guard guard(mutex_);
    for (auto it = pins_.begin(); it != pins_.end();) {
      if (it->second.deadline > now) {
        ++it;
        continue;
      }
      leases_.release(it->second.lease);
      count_ -= it->second.count;
      it = pins_.erase(it);
    }
  }

  /// At detach, where the leases end in another way.
  void forget() {
    const std::lock_guard guard(mutex_);
    pins_.clear();
    count_ = 0;
  }

 private:
  struct Pin {
    std::shared_ptr<Lease> lease;
    std::uint32_t count = 0;
    std::uint64_t deadline = 0;
  };

  const HostContext& context_;
  Leases<V>& leases_;
  mutable std::mutex mutex_;
  std::pmr::unsynchronized_pool_resource nodes_;  // as Leases has it
  std::pmr::unordered_map<Fingerprint, Pin, PrintHash> pins_{&nodes_};
  std::uint64_t count_ = 0;
};

}  // namespace beluga
