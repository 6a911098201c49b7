#pragma once

#include <signal.h>

namespace beluga {

/// While it lives, threads that this one starts take no signals that are sent to the process: those belong to its own
/// threads (Python's handlers run on the main one). The faults that a thread causes itself still come through; the
/// kernel would kill the process instead of calling bus_guard.hpp's handler.
class WithoutProcessSignals {
 public:
  WithoutProcessSignals() noexcept {
    sigset_t all;
    sigfillset(&all);
    for (const int own : {SIGBUS, SIGSEGV, SIGILL, SIGFPE, SIGTRAP}) sigdelset(&all, own);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~WithoutProcessSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  WithoutProcessSignals(const WithoutProcessSignals&) = delete;
  WithoutProcessSignals& operator=(const WithoutProcessSignals&) = delete;

 private:
  sigset_t before_;
};

}  // namespace beluga
