#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>

#include <atomic>
#include <memory>
#include <optional>

#include "pool_core.hpp"

namespace beluga {

namespace nb = nanobind;

using PoolPtr = std::shared_ptr<PoolCore>;

/// A leased, read-only view of one chunk. Keeps the pool's mapping alive whatever happens to the pool.
struct View {
  View(PoolPtr p, std::shared_ptr<Lease> l);
  ~View() { release(); }
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  void release();

  PoolPtr pool;
  std::shared_ptr<Lease> lease;
  std::byte* data;
  std::atomic<bool> released{false};
};

/// A slot to write into.
struct Reservation {
  Reservation(std::shared_ptr<PoolCore> p, const Slot& s, std::uint64_t n) : pool(std::move(p)), slot(s), bytes(n) {}
  ~Reservation() { abort(); }
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;

  void abort() {
    if (!done.exchange(true)) pool->abandon(slot);
  }

  std::shared_ptr<PoolCore> pool;
  Slot slot;
  std::uint64_t bytes;
  std::atomic<bool> done{false};
};

/// The lease as a View; None for a miss.
nb::object view_or_none(const PoolPtr& pool, std::shared_ptr<Lease>& lease);

/// A PutResult, and a view of the chunk if it was kept.
using Committed = nb::typed<nb::tuple, int, std::optional<std::shared_ptr<View>>>;

/// Publishes what was written to each of several reservations of `pool`; all of them are over then.
nb::typed<nb::list, Committed> commit_slots(const PoolPtr& pool, const std::vector<std::shared_ptr<Reservation>>& slots,
                                            nb::handle keys, const std::vector<nb::bytes>& metas,
                                            const std::vector<std::uint64_t>& sizes,
                                            const std::vector<std::uint32_t>& depths, bool keep);

/// Adds the classes View and Reservation to the module.
void bind_chunks(nb::module_& m);

}  // namespace beluga
