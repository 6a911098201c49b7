#include "bus_guard.hpp"

#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <mutex>

#include "errors.hpp"

namespace beluga {

namespace {

constexpr unsigned kRanges = 256;
constexpr unsigned kPrevious = 8;
// Each replaced page may cost one of the process's 65,530 mappings; a walk over a truncated pool
// would use them up. After this many the whole range is replaced: everything in it is distrusted
// anyway.
constexpr std::uint64_t kMaxSinglePages = 1024;

// One guarded range. `version` is a seqlock: odd while nobody or only its owner may use the entry.
// Static storage: the handler may look at any entry at any time, also while its owner goes away.
struct Range {
  std::atomic<bool> taken{false};
  std::atomic<std::uint64_t> version{1};
  std::atomic<std::uintptr_t> begin{0};
  std::atomic<std::uintptr_t> end{0};
  std::atomic<std::uintptr_t> page{4096};
  std::atomic<std::uint64_t> replaced{0};
  std::atomic<bool> faulted{false};
};

std::array<Range, kRanges> ranges;

std::mutex installing;
std::array<struct sigaction, kPrevious> previous;
std::atomic<unsigned> installed{
    0};  // handlers saved in `previous`; the last one is the next in line
std::atomic<pid_t> chaining{0};

bool map_zeros(std::uintptr_t begin, std::uintptr_t length) noexcept {
  // The raw call: a sanitizer's wrapper is not async-signal-safe.
  long result = ::syscall(SYS_mmap, begin, length, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0L);
  return result == static_cast<long>(begin);
}

/// Finds the range of `address` and puts zeros there; false when there is none.
bool absorb(std::uintptr_t address) noexcept {
  for (auto& range : ranges) {
    std::uint64_t version = range.version.load(std::memory_order_acquire);
    if (version & 1) continue;
    // SYNC POINT: guarded range. Acquire here and release at the stores, not fences, which TSan
    // does not know: whoever sees a field of the next owner sees the changed version too.
    std::uintptr_t begin = range.begin.load(std::memory_order_acquire);
    std::uintptr_t end = range.end.load(std::memory_order_acquire);
    std::uintptr_t page = range.page.load(std::memory_order_acquire);
    if (range.version.load(std::memory_order_relaxed) != version) continue;
    if (address < begin || address >= end) continue;

    // Before the access goes on, so that whoever uses what it reads can know.
    range.faulted.store(true, std::memory_order_seq_cst);
    bool single = range.replaced.fetch_add(1, std::memory_order_relaxed) < kMaxSinglePages;
    if (single && map_zeros(begin + (address - begin) / page * page, page)) return true;
    return map_zeros(begin, end - begin);
  }
  return false;
}

void die_by_default(bool synchronous) noexcept {
  struct sigaction action {};
  action.sa_handler = SIG_DFL;
  ::sigaction(SIGBUS, &action, nullptr);
  // A faulting instruction runs again on return and dies with its true address in the core dump; a
  // signal from elsewhere must be sent again. It is blocked until this handler returns.
  if (!synchronous) ::raise(SIGBUS);
}

void pass_on(int signal, siginfo_t* info, void* context, bool synchronous) noexcept {
  unsigned count = installed.load(std::memory_order_acquire);
  pid_t self = static_cast<pid_t>(::syscall(SYS_gettid));
  // Back here while the previous handler runs: it chains to us as we do to it.
  if (count == 0 || chaining.load(std::memory_order_relaxed) == self) {
    die_by_default(synchronous);
    return;
  }
  const struct sigaction& next = previous[count - 1];
  if (next.sa_flags & SA_SIGINFO) {
    chaining.store(self, std::memory_order_relaxed);
    next.sa_sigaction(signal, info, context);
    chaining.store(0, std::memory_order_relaxed);
  } else if (next.sa_handler == SIG_DFL || (next.sa_handler == SIG_IGN && synchronous)) {
    die_by_default(synchronous);  // the kernel kills for a fault even where SIGBUS is ignored
  } else if (next.sa_handler != SIG_IGN) {
    chaining.store(self, std::memory_order_relaxed);
    next.sa_handler(signal);
    chaining.store(0, std::memory_order_relaxed);
  }
}

void on_sigbus(int signal, siginfo_t* info, void* context) {
  int saved = errno;
  // Only the kernel's own codes are positive, and only they carry an address.
  bool from_kernel = info->si_code > 0 && info->si_code != SI_KERNEL;
  bool synchronous = from_kernel && info->si_code != BUS_MCEERR_AO;
  if (!from_kernel || !absorb(reinterpret_cast<std::uintptr_t>(info->si_addr))) {
    pass_on(signal, info, context, synchronous);
  }
  errno = saved;
}

bool is_ours(const struct sigaction& action) {
  return (action.sa_flags & SA_SIGINFO) != 0 && action.sa_sigaction == on_sigbus;
}

void install() {
  std::lock_guard hold(installing);
  struct sigaction current {};
  if (::sigaction(SIGBUS, nullptr, &current) != 0) {
    throw Error(ErrorKind::unsupported, "cannot read the SIGBUS handler");
  }
  unsigned count = installed.load(std::memory_order_relaxed);
  // A program that replaces handlers for ever gets its way: the table is small on purpose.
  if (is_ours(current) || count == kPrevious) return;
  // Saved before we are called for the first time.
  previous[count] = current;
  installed.store(count + 1, std::memory_order_release);

  struct sigaction action {};
  action.sa_sigaction = on_sigbus;
  // On the alternate stack where a thread has one: the stack itself may be what is broken.
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
  ::sigemptyset(&action.sa_mask);
  if (::sigaction(SIGBUS, &action, nullptr) != 0) {
    throw Error(ErrorKind::unsupported, "cannot install the SIGBUS handler");
  }
}

}  // namespace

BusGuard::BusGuard(void* base, std::uint64_t length, std::uint64_t page)
    : index_(kRanges), faulted_(nullptr) {
  auto begin = reinterpret_cast<std::uintptr_t>(base);
  bool power_of_two = page >= 4096 && (page & (page - 1)) == 0;
  if (!power_of_two || begin % page != 0 || length == 0 || length > UINTPTR_MAX - begin - page) {
    throw Error(ErrorKind::invalid_argument, "not a range of whole pages to guard");
  }
  install();
  for (unsigned i = 0; i < kRanges; ++i) {
    Range& range = ranges[i];
    if (range.taken.exchange(true, std::memory_order_acquire)) continue;
    // SYNC POINT: guarded range
    range.begin.store(begin, std::memory_order_release);
    range.end.store(begin + (length + page - 1) / page * page, std::memory_order_release);
    range.page.store(page, std::memory_order_release);
    range.replaced.store(0, std::memory_order_relaxed);
    range.faulted.store(false, std::memory_order_relaxed);
    range.version.fetch_add(1, std::memory_order_release);  // even: live
    index_ = i;
    faulted_ = &range.faulted;
    return;
  }
  throw Error(ErrorKind::unsupported,
              "more than 256 pool devices are mapped in this process: close some pools");
}

BusGuard::~BusGuard() {
  Range& range = ranges[index_];
  // Odd before any field changes, as the handler may be reading this entry in another thread.
  range.version.fetch_add(1, std::memory_order_relaxed);
  range.taken.store(false, std::memory_order_release);
}

}  // namespace beluga
