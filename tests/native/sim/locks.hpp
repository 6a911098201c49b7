#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "actors.hpp"

namespace sim {

/// A mutex among the fibers of one process. Locking is a locked operation; unlocking is a store.
class Mutex {
 public:
  void lock() noexcept;
  bool try_lock() noexcept;
  void unlock() noexcept;

 private:
  friend class World;
  bool held_ = false;
};

/// The robust mutexes of the control blocks, by address: the memory of the mutex itself is not
/// used.
class RobustLocks {
 public:
  struct Lock {
    const void* address;
    std::uint16_t host;
    Fiber* holder = nullptr;  // null and `held`: taken outside of any fiber
    bool held = false;
    bool owner_died = false;
  };

  Lock& at(const void* address, std::uint16_t host) {
    const auto [it, added] = index_.try_emplace(address, locks_.size());
    if (added) locks_.push_back({address, host});
    return locks_[it->second];
  }
  const Lock* find(const void* address) const {
    const auto it = index_.find(address);
    return it == index_.end() ? nullptr : &locks_[it->second];
  }
  /// Calls each(lock) in the order in which the locks were first used.
  template <class Each>
  void each(Each&& each) {
    for (Lock& lock : locks_) each(lock);
  }

 private:
  std::unordered_map<const void*, std::size_t> index_;
  std::vector<Lock> locks_;
};

}  // namespace sim
