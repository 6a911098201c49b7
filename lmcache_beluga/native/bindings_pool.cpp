#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <chrono>

#include "bindings_chunks.hpp"
#include "bindings_geometry.hpp"
#include "bindings_gil.hpp"
#include "bindings_keys.hpp"
#include "bindings_memory.hpp"
#include "errors.hpp"
#include "pool_core.hpp"

namespace beluga {

using namespace nb::literals;

namespace {

/// Chunks, where to go on, and whether that was all.
using Listed = nb::typed<nb::tuple, nb::typed<nb::list, Facts>, std::uint32_t, bool>;

nb::bytes to_bytes(std::span<const std::byte> bytes) { return nb::bytes(bytes.data(), bytes.size()); }

template <class ViewList>
ViewList get_views(const PoolPtr& pool, nb::handle keys, bool prefix) {
  ScratchBatch batch;
  read_keys(keys.ptr(), *batch);
  std::vector<std::shared_ptr<Lease>> leases;
  {
    // With checksums, it reads the chunks.
    const UnlockedIfLong unlocked(pool->context().options.verify ? SIZE_MAX : batch->size());
    pool->lease(*batch, prefix, leases);
  }
  ViewList out;
  for (auto& lease : leases) {
    if (prefix && !lease) break;
    out.append(view_or_none(pool, lease));
  }
  return out;
}

}  // namespace

nb::typed<nb::list, Facts> host_facts(const std::vector<HostView>& views) {
  nb::typed<nb::list, Facts> out;
  for (const HostView& v : views) {
    nb::dict d;
    d["id"] = v.id;
    d["state"] = v.state == static_cast<std::uint32_t>(HostState::member)    ? "member"
               : v.state == static_cast<std::uint32_t>(HostState::joining) ? "joining"
                                                                           : "retired";
    d["incarnation"] = v.incarnation;
    d["tick"] = v.tick;
    d["processes"] = v.processes;
    d["extents"] = v.extents;
    d["pressure"] = v.pressure;
    d["coldest_age_ms"] = v.coldest_age_ms;
    d["dead_after_ms"] = v.dead_after_ms;
    d["left"] = v.left;
    d["live"] = v.live;
    d["attached"] = v.attached;
    d["silent_ms"] = v.silent_ms;
    d["self"] = v.self;
    // Another host wrote it: it may hold anything.
    d["name"] = nb::steal<nb::str>(
        PyUnicode_DecodeUTF8(v.name.data(), static_cast<Py_ssize_t>(v.name.size()), "replace"));
    nb::dict counters;
    for (std::size_t c = 0; c < kCounts; ++c) counters[kCountNames[c]] = v.counters[c];
    d["counters"] = counters;
    out.append(d);
  }
  return out;
}

void bind_pool(nb::module_& m) {
  nb::class_<PoolCore>(m, "Pool", "One process's handle on one pool.")
      .def_prop_ro("geometry", [](const PoolPtr& p) { return geometry_facts(*p->context().pool); })
      .def_prop_ro("host_id", [](const PoolPtr& p) { return p->context().host; })
      .def_prop_ro("closed", [](const PoolPtr& p) { return p->closed(); })
      .def_prop_ro("close_reason", [](const PoolPtr& p) { return p->close_reason(); })
      .def_prop_ro("copy_threads", [](const PoolPtr& p) { return p->copier().threads(); })
      .def("check_open", [](const PoolPtr& p) { p->check_open(); })
      .def("close",
           [](const PoolPtr& p) {
             nb::gil_scoped_release unlocked;
             p->close();
           })
      .def("contains",
           [](const PoolPtr& p, nb::handle keys) -> nb::typed<nb::list, bool> {
             ScratchBatch batch;
             read_keys(keys.ptr(), *batch);
             const std::size_t n = batch->size();
             const auto flags = std::make_unique<bool[]>(n);
             {
               const UnlockedIfLong unlocked(n);
               p->contains(batch->prints, {flags.get(), n});
             }
             nb::typed<nb::list, bool> out;
             for (std::size_t i = 0; i < n; ++i) out.append(nb::bool_(flags[i]));
             return out;
           }, "keys"_a)
      .def("contains_prefix",
           [](const PoolPtr& p, nb::handle keys) {
             ScratchBatch batch;
             read_keys(keys.ptr(), *batch);
             const UnlockedIfLong unlocked(batch->size());
             return p->contains_prefix(batch->prints);
           }, "keys"_a)
      .def("is_duplicate",
           [](const PoolPtr& p, nb::handle key) {
             ScratchBatch batch;
             read_key(key.ptr(), *batch);
             nb::gil_scoped_release unlocked;
             return p->is_duplicate(batch->prints[0]);
           }, "key"_a)
      .def("pin_prefix",
           [](const PoolPtr& p, nb::handle keys) {
             ScratchBatch batch;
             read_keys(keys.ptr(), *batch);
             const UnlockedIfLong unlocked(batch->size());
             return p->pin_prefix(*batch);
           }, "keys"_a)
      .def("unpin",
           [](const PoolPtr& p, nb::handle key) {
             ScratchBatch batch;
             read_key(key.ptr(), *batch);
             nb::gil_scoped_release unlocked;
             return p->unpin(batch->prints[0]);
           }, "key"_a)
      .def("unpin_batch",
           [](const PoolPtr& p, nb::handle keys) {
             ScratchBatch batch;
             read_keys(keys.ptr(), *batch);
             nb::gil_scoped_release unlocked;
             std::size_t n = 0;
             for (const Fingerprint& print : batch->prints) n += p->unpin(print);
             return n;
           }, "keys"_a)
      .def("pinned",
           [](const PoolPtr& p, nb::handle keys) -> nb::typed<nb::list, bool> {
             ScratchBatch batch;
             read_keys(keys.ptr(), *batch);
             nb::typed<nb::list, bool> out;
             for (const Fingerprint& print : batch->prints) out.append(nb::bool_(p->pinned(print)));
             return out;
           }, "keys"_a)
      .def("unpin_all",
           [](const PoolPtr& p) {
             nb::gil_scoped_release unlocked;
             return p->unpin_all();
           })
      .def_prop_ro("views", [](const PoolPtr& p) { return p->views.load(); })
      .def_prop_ro("pins", [](const PoolPtr& p) { return p->pins(); })
      .def("get_batch", [](const PoolPtr& p, nb::handle keys) { return get_views<nb::typed<nb::list, std::optional<std::shared_ptr<View>>>>(p, keys, false); }, "keys"_a)
      .def("get_prefix", [](const PoolPtr& p, nb::handle keys) { return get_views<nb::typed<nb::list, std::shared_ptr<View>>>(p, keys, true); }, "keys"_a)
      .def("reserve",
           [](const PoolPtr& p, std::uint64_t size) -> std::optional<std::shared_ptr<Reservation>> {
             Slot slot;
             Refusal refusal;
             {
               nb::gil_scoped_release unlocked;
               refusal = p->reserve(size, slot);
             }
             if (refusal != Refusal::none) return std::nullopt;
             return std::make_shared<Reservation>(p, slot, size);
           }, "size"_a)
      .def("reserve_batch",
           [](const PoolPtr& p, std::uint64_t size,
              std::size_t count) -> nb::typed<nb::list, std::shared_ptr<Reservation>> {
             std::vector<std::shared_ptr<Reservation>> reserved;
             {
               nb::gil_scoped_release unlocked;
               for (Slot slot; reserved.size() < count && p->reserve(size, slot) == Refusal::none;) {
                 reserved.push_back(std::make_shared<Reservation>(p, slot, size));
               }
             }
             nb::typed<nb::list, std::shared_ptr<Reservation>> out;
             for (auto& one : reserved) out.append(std::move(one));
             return out;
           }, "size"_a, "count"_a)
      .def("commit_batch", &commit_slots, "reservations"_a, "keys"_a, "metas"_a, "sizes"_a, "depths"_a, "keep"_a)
      .def("put",
           [](const PoolPtr& p, nb::handle keys, Objects data, nb::typed<nb::sequence, nb::bytes> metas, std::uint32_t first_depth) -> nb::typed<nb::list, int> {
             ScratchBatch batch;
             read_keys(keys.ptr(), *batch);
             const std::size_t n = batch->size();
             const Memories memories(data, n, false);
             std::vector<std::span<const std::byte>> sources(memories.spans.begin(), memories.spans.end());
             for (const auto& source : sources) {
               if (source.empty()) throw Error(ErrorKind::invalid_argument, "a chunk must have at least one byte");
             }
             std::vector<std::span<const std::byte>> meta_spans;
             for (nb::handle meta : metas) {
               const auto bytes = nb::cast<nb::bytes>(meta);
               meta_spans.emplace_back(reinterpret_cast<const std::byte*>(bytes.c_str()), bytes.size());
             }
             if (!meta_spans.empty() && meta_spans.size() != n) {
               throw Error(ErrorKind::invalid_argument, "give one metadata for each key, or none");
             }
             std::vector<PutResult> results(n);
             {
               nb::gil_scoped_release unlocked;
               p->put(*batch, sources, meta_spans, first_depth, results);
             }
             nb::typed<nb::list, int> out;
             for (const PutResult result : results) out.append(static_cast<int>(result));
             return out;
           }, "keys"_a, "data"_a, "metas"_a, "first_depth"_a)
      .def("read_into",
           [](const PoolPtr& p, nb::handle keys, Objects buffers) -> nb::typed<nb::list, std::optional<std::int64_t>> {
             ScratchBatch batch;
             read_keys(keys.ptr(), *batch);
             const Memories memories(buffers, batch->size(), true);
             std::vector<std::int64_t> copied(batch->size());
             {
               nb::gil_scoped_release unlocked;
               p->read_into(*batch, memories.spans, copied);
             }
             nb::typed<nb::list, std::optional<std::int64_t>> out;
             for (const std::int64_t n : copied) {
               if (n < 0) {
                 out.append(nb::none());
               } else {
                 out.append(n);
               }
             }
             return out;
           }, "keys"_a, "buffers"_a)
      .def("touch",
           [](const PoolPtr& p, nb::handle keys) {
             ScratchBatch batch;
             read_keys(keys.ptr(), *batch);
             const UnlockedIfLong unlocked(batch->size());
             return p->touch(batch->prints);
           }, "keys"_a)
      .def("remove",
           [](const PoolPtr& p, nb::handle keys) {
             ScratchBatch batch;
             read_keys(keys.ptr(), *batch);
             nb::gil_scoped_release unlocked;
             return p->remove(batch->prints);
           }, "keys"_a)
      .def("clear",
           [](const PoolPtr& p) {
             nb::gil_scoped_release unlocked;
             return p->clear();
           })
      .def("retire",
           [](const PoolPtr& p) {
             nb::gil_scoped_release unlocked;
             return p->retire();
           })
      .def("evict",
           [](const PoolPtr& p, std::uint64_t bytes) {
             nb::gil_scoped_release unlocked;
             return p->evict(bytes);
           }, "nbytes"_a)
      .def_prop_ro("slots_per_extent", [](const PoolPtr& p) { return p->context().sb().slots_per_extent; })
      .def("hold_pages",
           [](const PoolPtr& p) {
             nb::gil_scoped_release unlocked;
             return p->hold_pages();
           })
      .def("note_kept",
           [](const PoolPtr& p, std::uint32_t extent) {
             const PoolMemory& memory = *p->context().pool;
             if (extent >= memory.sb().extents) throw Error(ErrorKind::invalid_argument, "no such extent");
             memory.note_kept(extent);
           }, "extent"_a)
      .def("lend", [](const PoolPtr& p, std::uint32_t ms) { p->lend(ms); }, "ms"_a)
      .def("extent_of",
           [](const PoolPtr& p, std::uint32_t slot) {
             const PoolMemory& memory = *p->context().pool;
             if (slot >= memory.slot_limit()) throw Error(ErrorKind::invalid_argument, "no such slot");
             const std::uint32_t extent = memory.extent_of(slot);
             return nb::make_tuple(extent, reinterpret_cast<std::uintptr_t>(memory.payload(extent)));
           }, "slot"_a, nb::sig("def extent_of(self, slot: int) -> tuple[int, int]"))
      .def("entries",
           [](const PoolPtr& p, std::uint32_t cursor, std::size_t most) -> Listed {
             std::vector<Entry> entries;
             {
               nb::gil_scoped_release unlocked;
               entries = p->list(cursor, most);
             }
             nb::list out;
             for (const Entry& e : entries) {
               nb::dict d;
               d["record"] = to_bytes(e.record);
               d["meta"] = to_bytes(e.meta);
               d["size"] = e.size;
               d["host"] = e.host;
               d["extent"] = e.extent;
               d["slot"] = e.slot;
               d["generation"] = e.generation;
               d["state"] = e.closing ? "closing" : "ready";
               d["depth"] = e.depth;
               d["leased"] = e.leased;
               d["age_ms"] = e.idle_ms;
               out.append(d);
             }
             return nb::borrow<Listed>(nb::make_tuple(out, cursor, cursor >= p->context().pool->slot_limit()));
           }, "cursor"_a, "most"_a)
      .def("check",
           [](const PoolPtr& p) -> Facts {
             CheckReport report;
             {
               nb::gil_scoped_release unlocked;
               report = p->check();
             }
             Facts d;
             d["errors"] = nb::cast(report.errors);
             d["problems"] = report.problems;
             d["slots"] = report.slots;
             d["chunks"] = report.chunks;
             d["free"] = report.free;
             d["writing"] = report.writing;
             d["closing"] = report.closing;
             d["lane_entries"] = report.lane_entries;
             return d;
           })
      .def("occupancy",
           [](const PoolPtr& p) -> Facts {
             Occupancy all;
             {
               nb::gil_scoped_release unlocked;
               all = p->occupancy();
             }
             Facts d;
             d["chunks"] = all.chunks;
             d["bytes_used"] = all.bytes;
             d["bytes_wasted"] = all.wasted;
             d["writing"] = all.writing;
             d["closing"] = all.closing;
             d["leased"] = all.leased;
             d["extents_owned"] = all.extents_owned;
             d["extents_free"] = all.extents_free;
             nb::list cuts;
             for (const CutUse& cut : all.cuts) {
               nb::dict c;
               c["slot_size"] = cut.slot_size;
               c["extents"] = cut.extents;
               c["slots"] = cut.slots;
               c["used"] = cut.used;
               c["bytes_used"] = cut.bytes;
               cuts.append(c);
             }
             d["cuts"] = cuts;
             return d;
           })
      .def("hosts",
           [](const PoolPtr& p) -> nb::typed<nb::list, Facts> {
             std::vector<HostView> views;
             {
               nb::gil_scoped_release unlocked;
               views = p->hosts();
             }
             return host_facts(views);
           })
      .def("totals",
           [](const PoolPtr& p) -> Facts {
             std::array<std::uint64_t, kCounts> sums{};
             p->totals(sums);
             Facts d;
             for (std::size_t c = 0; c < kCounts; ++c) d[kCountNames[c]] = sums[c];
             return d;
           })
      .def_prop_ro("last_no_space", [](const PoolPtr& p) { return p->last_no_space(); })
      .def(
          "lookup_seconds",
          [](const PoolPtr& p, nb::handle keys, std::size_t rounds) {
            ScratchBatch batch;
            read_keys(keys.ptr(), *batch);
            nb::gil_scoped_release unlocked;
            const auto start = std::chrono::steady_clock::now();
            for (std::size_t i = 0; i < rounds; ++i) {
              if (p->contains_prefix(batch->prints) != batch->size()) {
                throw Error(ErrorKind::invalid_argument, "not every key is in the pool");
              }
            }
            return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
          },
          "keys"_a, "rounds"_a, "Seconds for `rounds` native lookups of the same keys, all of them present.");
}

}  // namespace beluga
