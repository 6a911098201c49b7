#pragma once

#include <functional>
#include <span>

namespace beluga {

/// Runs `work(i)` for every i in a thread of its own on cpus[i], and waits for all of them. None begins before all
/// threads are there and on their CPUs, so that they may wait for each other. Throws `invalid_argument`, with nothing
/// run, for a CPU that this process may not use, or when the system gives no more threads. `work` must not throw.
void run_pinned(std::span<const int> cpus, const std::function<void(std::size_t)>& work);

}  // namespace beluga
