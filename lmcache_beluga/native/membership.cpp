#include "membership.hpp"

#include <poll.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "cache_instructions.hpp"
#include "clock.hpp"
#include "control_path.hpp"
#include "errors.hpp"
#include "format.hpp"
#include "identity.hpp"
#include "visibility.hpp"

namespace beluga {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

/// How long the kernel may take to end a killed process once it has begun to close its files.
constexpr milliseconds kDyingMs{1000};

/// Start time of a process in clock ticks since boot: field 22 of /proc/PID/stat. 0: no such process here.
std::uint64_t start_time(std::uint32_t pid) {
  char path[32];
  std::snprintf(path, sizeof(path), "/proc/%u/stat", pid);
  std::FILE* file = std::fopen(path, "re");
  if (!file) return 0;
  char text[1024];
  const std::size_t n = std::fread(text, 1, sizeof(text) - 1, file);
  std::fclose(file);
  text[n] = 0;
  const char* at = std::strrchr(text, ')');  // the name may contain anything
  for (int field = 2; at && field < 22; ++field) at = std::strchr(at + 1, ' ');
  return at ? std::strtoull(at + 1, nullptr, 10) : 0;
}

std::uint64_t own_pid_namespace() {
  struct stat st {};
  return stat("/proc/self/ns/pid", &st) == 0 ? st.st_ino : 0;
}

/// 1: has ended, 0: has not, -1: cannot be seen.
int pidfd_says(std::uint32_t pid) {
  const auto fd = static_cast<int>(syscall(SYS_pidfd_open, static_cast<pid_t>(pid), 0));
  if (fd < 0) return errno == ESRCH ? 1 : -1;
  pollfd p{fd, POLLIN, 0};
  const int rc = poll(&p, 1, 0);
  close(fd);
  return rc > 0 ? 1 : 0;
}

std::string host_in_use_text(const PoolMemory& pool, std::uint32_t host) {
  return "host id " + std::to_string(host) + " of " + pool.devices()[0]->file().path() +
         " is used by a process that does not share this one's /dev/shm: let the containers share /dev/shm "
         "(docker: --ipc=host), or give each its own beluga.host_id";
}

/// Refuses a device that machines share when the host page belongs to another machine.
void check_machine(const PoolMemory& pool, const AttachOptions& options) {
  if (options.takeover || pool.devices()[0]->file().kind() != DeviceKind::devdax) return;
  const HostIdentity identity = observe_identity<Noncoherent<CacheMachine>>(pool, options.host_id);
  if (identity.state != static_cast<std::uint32_t>(HostState::member)) return;
  std::uint8_t mine[16];
  read_machine_id(mine);
  if (std::memcmp(mine, identity.machine, sizeof(mine)) == 0) return;
  throw Error(ErrorKind::host_in_use,
              "host id " + std::to_string(options.host_id) + " of " + pool.devices()[0]->file().path() +
                  " belongs to another machine: set beluga.host_id to a free one, or beluga.takeover to true if "
                  "that machine is powered off for good");
}

/// Opens the control block and locks its initialisation. The last process to leave removes the file, so the
/// one that was locked must still be the one that the path names.
std::shared_ptr<ControlBlock> lock_control(const PoolMemory& pool, const AttachOptions& options, RangeLock& lock) {
  const std::string dir = options.control_dir.empty() ? default_control_dir() : options.control_dir;
  const std::string path = control_path(dir, pool.sb().uuid, options.host_id);
  const auto deadline = steady_clock::now() + milliseconds(options.open_timeout_ms);
  for (;;) {
    auto control = std::make_shared<ControlBlock>(path, pool, options.control_mode);
    auto taken = RangeLock::take(control->fd(), kInitLockByte, LockMode::exclusive, deadline);
    if (!taken) {
      throw Error(ErrorKind::pool_busy, "another process has been attaching as host " +
                                            std::to_string(options.host_id) +
                                            " for too long (is it stopped?): " + path);
    }
    if (control->linked()) {
      lock = std::move(*taken);
      return control;
    }
  }
}

/// Does any process entry have a living owner?
bool anybody_alive(const ControlBlock& control) {
  for (std::uint32_t p = 0; p < kMaxProcesses; ++p) {
    if (held_by_other(control.fd(), kProcessLockByte + p)) return true;
  }
  return false;
}

/// Waits until what the dead processes of the host had in flight has ended: at most dead_after.
void await_the_dead(const ControlBlock& control, std::uint32_t dead_after_ms) {
  const auto deadline = steady_clock::now() + milliseconds(dead_after_ms);
  for (std::uint32_t p = 0; p < kMaxProcesses; ++p) {
    ProcessEntry& entry = control.process(p);
    while (entry.state != 0 && !process_has_ended(entry, dead_after_ms) && steady_clock::now() < deadline) {
      std::this_thread::sleep_for(milliseconds(1));
    }
  }
}

}  // namespace

Membership::~Membership() {
  if (!first || !initialising.held()) return;
  try {
    if (control->linked() && !anybody_alive(*control)) unlink(control->path().c_str());
  } catch (const std::exception&) {
    // It is taken along by the next one who leaves in order.
  }
}

bool process_has_ended(ProcessEntry& entry, std::uint32_t dead_after_ms) {
  const std::uint32_t lent_ms = Coherent::load(&entry.lends_ms);
  std::uint32_t quarantine_ms = std::max(dead_after_ms, lent_ms);
  if (entry.pid_namespace == own_pid_namespace()) {
    const int says = pidfd_says(entry.pid);
    if (says == 0) {
      const std::uint64_t started = start_time(entry.pid);
      // Another process may have got the pid meanwhile.
      if (started == 0 || started == entry.started) return false;
    }
    if (says >= 0) quarantine_ms = lent_ms;
  }
  if (quarantine_ms == 0) return true;
  const std::uint64_t now = boot_ms();
  const std::uint64_t died = Coherent::load(&entry.died);
  if (died == 0) {
    Coherent::store(&entry.died, now);
    return false;
  }
  return now - died >= quarantine_ms;
}

void describe_process(ProcessEntry& entry) {
  entry.pid = static_cast<std::uint32_t>(getpid());
  entry.started = start_time(entry.pid);
  entry.pid_namespace = own_pid_namespace();
  Coherent::store(&entry.died, std::uint64_t{0});
  Coherent::store(&entry.lends_ms, std::uint32_t{0});
  Coherent::store(&entry.state, std::uint32_t{1});
}

Membership join_host(const PoolMemory& pool, const AttachOptions& options) {
  check_machine(pool, options);
  Membership member;
  member.control = lock_control(pool, options, member.initialising);
  const ControlBlock& control = *member.control;
  const std::uint64_t byte = kAttachLockByte + options.host_id;
  const bool ours = control.matches(pool, options.host_id);
  member.first = !ours || !anybody_alive(control);
  if (member.first) {
    // Nobody of this /dev/shm is attached. Whoever else holds the host id cannot share our control block.
    // Processes that are just being killed may lose their entry a moment before this lock.
    auto alone = RangeLock::take(pool.lock_fd(), byte, LockMode::exclusive, steady_clock::now() + kDyingMs);
    if (!alone) throw Error(ErrorKind::host_in_use, host_in_use_text(pool, options.host_id));
    alone->downgrade();  // the processes that come next share it; a stranger still cannot have it alone
    member.attached = std::move(*alone);
    if (ours) await_the_dead(control, options.dead_after_ms);
    if (ours) member.former_nonce = control.header().nonce;
    control.reset(pool, options.host_id);
  } else {
    auto shared = RangeLock::try_take(pool.lock_fd(), byte, LockMode::shared);
    if (!shared) throw Error(ErrorKind::host_in_use, host_in_use_text(pool, options.host_id));
    member.attached = std::move(*shared);
  }
  for (std::uint32_t p = 0; p < kMaxProcesses; ++p) {
    auto alive = RangeLock::try_take(control.fd(), kProcessLockByte + p, LockMode::exclusive);
    if (!alive) continue;
    ProcessEntry& entry = control.process(p);
    if (entry.state != 0 && !process_has_ended(entry, options.dead_after_ms)) continue;
    member.alive = std::move(*alive);
    member.process = p + 1;
    return member;
  }
  throw Error(ErrorKind::pool_busy, "host " + std::to_string(options.host_id) + " already has " +
                                        std::to_string(kMaxProcesses) + " processes attached to this pool");
}

}  // namespace beluga
