#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <chrono>
#include <cstring>

#include "bindings_keys.hpp"
#include "errors.hpp"
#include "format.hpp"
#include "pool_core.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace beluga {
namespace {

using Options = nb::typed<nb::dict, nb::str, nb::any>;
using Facts = nb::typed<nb::dict, nb::str, nb::any>;
using Objects = nb::typed<nb::sequence, nb::any>;

/// Name of the class in lmcache_beluga.errors.
const char* class_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::pool_missing: return "PoolMissingError";
    case ErrorKind::not_a_pool: return "NotAPoolError";
    case ErrorKind::half_formatted: return "HalfFormattedError";
    case ErrorKind::version_mismatch: return "VersionMismatchError";
    case ErrorKind::key_scheme: return "KeySchemeError";
    case ErrorKind::pool_uuid: return "PoolUuidError";
    case ErrorKind::pool_truncated: return "PoolTruncatedError";
    case ErrorKind::pool_permission: return "PoolPermissionError";
    case ErrorKind::host_in_use: return "HostInUseError";
    case ErrorKind::pool_busy: return "PoolBusyError";
    case ErrorKind::no_space: return "NoSpaceError";
    case ErrorKind::chunk_too_large: return "ChunkTooLargeError";
    case ErrorKind::record_too_large: return "RecordTooLargeError";
    case ErrorKind::pool_closed: return "PoolClosedError";
    case ErrorKind::forked_handle: return "ForkedHandleError";
    case ErrorKind::unsupported: return "UnsupportedError";
    case ErrorKind::pool_io: return "PoolIOError";
    case ErrorKind::invalid_argument: return "InvalidArgumentError";
    case ErrorKind::corrupt_pool: return "CorruptPoolError";
  }
  return "BelugaError";
}

void raise_in_python(const Error& error) {
  try {
    const nb::object type = nb::module_::import_("lmcache_beluga.errors").attr(class_name(error.kind));
    PyErr_SetString(type.ptr(), error.what());
  } catch (nb::python_error&) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

nb::bytes to_bytes(std::span<const std::byte> bytes) { return nb::bytes(bytes.data(), bytes.size()); }

/// A buffer of the caller, held for the time of a call.
class HeldBuffer {
 public:
  HeldBuffer(nb::handle object, bool writable) {
    if (PyObject_GetBuffer(object.ptr(), &view_, writable ? PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS : PyBUF_C_CONTIGUOUS)) {
      throw nb::python_error();
    }
    held_ = true;
  }
  HeldBuffer(HeldBuffer&& other) noexcept : view_(other.view_), held_(std::exchange(other.held_, false)) {}
  HeldBuffer(const HeldBuffer&) = delete;
  HeldBuffer& operator=(const HeldBuffer&) = delete;
  ~HeldBuffer() {
    if (held_) PyBuffer_Release(&view_);
  }
  std::span<std::byte> bytes() const {
    return {static_cast<std::byte*>(view_.buf), static_cast<std::size_t>(view_.len)};
  }

 private:
  Py_buffer view_{};
  bool held_ = false;
};

/// Payload memory named by a batch of Python objects: buffers, or (address, bytes) pairs for memory that has no
/// Python buffer, such as a tensor's.
class Memories {
 public:
  Memories(const Objects& objects, std::size_t expected, bool writable) {
    const std::size_t n = nb::len(objects);
    if (n != expected) {
      throw Error(ErrorKind::invalid_argument,
                  std::to_string(expected) + " keys and " + std::to_string(n) + " buffers");
    }
    held_.reserve(n);
    for (nb::handle object : objects) {
      if (nb::isinstance<nb::tuple>(object)) {
        const auto pair = nb::cast<nb::tuple>(object);
        if (pair.size() != 2) throw Error(ErrorKind::invalid_argument, "memory is an (address, bytes) pair");
        spans.emplace_back(reinterpret_cast<std::byte*>(nb::cast<std::uintptr_t>(pair[0])),
                           nb::cast<std::size_t>(pair[1]));
      } else {
        held_.emplace_back(object, writable);
        spans.push_back(held_.back().bytes());
      }
    }
  }
  std::vector<std::span<std::byte>> spans;

 private:
  std::vector<HeldBuffer> held_;
};

std::atomic<std::int64_t> live_views{0};

/// A leased, read-only view of one chunk. Keeps the pool's mapping alive whatever happens to the pool.
struct View {
  View(std::shared_ptr<PoolCore> p, std::shared_ptr<Lease> l) : pool(std::move(p)), lease(std::move(l)) {
    data = pool->address_of(*lease);
    views().fetch_add(1, std::memory_order_relaxed);
  }
  ~View() { release(); }
  View(const View&) = delete;
  View& operator=(const View&) = delete;

  void release() {
    if (released.exchange(true)) return;
    views().fetch_sub(1, std::memory_order_relaxed);
    pool->release(lease);
  }
  static std::atomic<std::int64_t>& views() { return live_views; }

  std::shared_ptr<PoolCore> pool;
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

template <class T>
T* self_of(PyObject* object) {
  return nb::inst_ptr<T>(nb::handle(object));
}

int view_buffer(PyObject* object, Py_buffer* out, int flags) {
  const View* view = self_of<View>(object);
  if (view->released) {
    PyErr_SetString(PyExc_BufferError, "this view was released");
    return -1;
  }
  return PyBuffer_FillInfo(out, object, view->data, static_cast<Py_ssize_t>(view->lease->size), 1, flags);
}

int reservation_buffer(PyObject* object, Py_buffer* out, int flags) {
  const Reservation* r = self_of<Reservation>(object);
  if (r->done) {
    PyErr_SetString(PyExc_BufferError, "this reservation was committed or aborted");
    return -1;
  }
  return PyBuffer_FillInfo(out, object, r->slot.address, static_cast<Py_ssize_t>(r->bytes), 0, flags);
}

PyType_Slot view_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(&view_buffer)}, {0, nullptr}};
PyType_Slot reservation_slots[] = {{Py_bf_getbuffer, reinterpret_cast<void*>(&reservation_buffer)}, {0, nullptr}};

using Bytes1D = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>;
using ReadOnly1D = nb::ndarray<nb::numpy, const std::uint8_t, nb::ndim<1>>;

std::vector<std::string> paths_of(nb::handle path) {
  if (nb::isinstance<nb::str>(path)) return {nb::cast<std::string>(path)};
  std::vector<std::string> paths;
  for (nb::handle one : nb::cast<nb::sequence>(path)) paths.push_back(nb::cast<std::string>(nb::str(one)));
  return paths;
}

template <class T>
void take(const Options& from, const char* name, T& to) {
  if (from.contains(name)) to = nb::cast<T>(from[name]);
}

FormatOptions format_options(const Options& d) {
  FormatOptions o;
  take(d, "max_hosts", o.max_hosts);
  take(d, "extent_size", o.extent_size);
  take(d, "chunk_hint", o.chunk_hint);
  take(d, "key_scheme", o.key_scheme);
  take(d, "mode", o.mode);
  take(d, "force", o.force);
  bool noncoherent = false;
  take(d, "noncoherent", noncoherent);
  if (noncoherent) {
    throw Error(ErrorKind::unsupported,
                "visibility=noncoherent is part of the pool format, but this build cannot run it yet: use "
                "visibility=coherent, for the processes of one machine");
  }
  return o;
}

AttachOptions attach_options(const Options& d) {
  AttachOptions o;
  take(d, "host_id", o.host_id);
  take(d, "uuid", o.uuid);
  take(d, "key_scheme", o.key_scheme);
  take(d, "takeover", o.takeover);
  take(d, "lease_ms", o.lease_ms);
  take(d, "pin_timeout_ms", o.pin_timeout_ms);
  take(d, "heartbeat_ms", o.heartbeat_ms);
  take(d, "dead_after_ms", o.dead_after_ms);
  take(d, "lock_timeout_ms", o.lock_timeout_ms);
  take(d, "open_timeout_ms", o.open_timeout_ms);
  take(d, "control_dir", o.control_dir);
  take(d, "mode", o.control_mode);
  take(d, "copy_threads", o.copy_threads);
  take(d, "prefault", o.prefault);
  return o;
}

Facts geometry(const PoolMemory& pool) {
  const Superblock& sb = pool.sb();
  Facts d;
  d["uuid"] = uuid_text(sb.uuid);
  d["version"] = sb.version;
  d["epoch"] = sb.epoch;
  d["extent_size"] = sb.extent_size;
  d["extents"] = sb.extents;
  d["min_slot"] = sb.min_slot;
  d["max_slots"] = sb.slots_per_extent;
  d["buckets"] = sb.buckets;
  d["max_hosts"] = sb.max_hosts;
  d["record_bytes"] = sb.record_bytes;
  d["metadata_bytes"] = sb.metadata_bytes;
  d["visibility"] = sb.visibility == VisibilityMode::coherent ? "coherent" : "noncoherent";
  d["key_scheme"] = std::string(sb.key_scheme);
  d["max_lease_ms"] = sb.max_lease_ms;
  d["created_unix_ms"] = sb.created_unix_ms;
  nb::list devices;
  for (std::uint32_t i = 0; i < sb.device_count; ++i) {
    const PoolFile& file = pool.devices()[i]->file();
    nb::dict device;
    device["path"] = file.path();
    device["size"] = sb.devices[i].bytes;
    device["kind"] = to_string(file.kind());
    device["extents"] = sb.devices[i].extents;
    device["address"] = reinterpret_cast<std::uintptr_t>(pool.devices()[i]->base());
    devices.append(device);
  }
  d["devices"] = devices;
  return d;
}

using PoolPtr = std::shared_ptr<PoolCore>;

nb::object view_or_none(const PoolPtr& pool, std::shared_ptr<Lease>& lease) {
  if (!lease) return nb::none();
  return nb::cast(std::make_shared<View>(pool, std::move(lease)));
}

template <class ViewList>
ViewList get_views(const PoolPtr& pool, nb::handle keys, bool prefix) {
  ScratchBatch batch;
  read_keys(keys.ptr(), *batch);
  std::vector<std::shared_ptr<Lease>> leases;
  {
    nb::gil_scoped_release unlocked;
    pool->lease(*batch, prefix, leases);
  }
  ViewList out;
  for (auto& lease : leases) {
    if (prefix && !lease) break;
    out.append(view_or_none(pool, lease));
  }
  return out;
}

nb::typed<nb::tuple, int, std::optional<std::shared_ptr<View>>> commit_slot(Reservation& r, nb::handle key, const nb::bytes& meta, std::uint32_t depth, nb::object size,
                      bool keep) {
  ScratchBatch batch;
  read_key(key.ptr(), *batch);
  const std::uint64_t bytes = size.is_none() ? r.bytes : nb::cast<std::uint64_t>(size);
  if (bytes == 0 || bytes > r.bytes) {
    throw Error(ErrorKind::invalid_argument, "size must be 1 to the " + std::to_string(r.bytes) + " bytes reserved");
  }
  if (r.done.exchange(true)) {
    throw Error(ErrorKind::invalid_argument, "the reservation was already committed or aborted");
  }
  std::shared_ptr<Lease> lease;
  PutResult result;
  const std::span<const std::byte> meta_bytes(reinterpret_cast<const std::byte*>(meta.c_str()), meta.size());
  {
    nb::gil_scoped_release unlocked;
    result = r.pool->commit(r.slot, *batch, meta_bytes, bytes, depth, keep ? &lease : nullptr);
  }
  return nb::make_tuple(static_cast<int>(result), view_or_none(r.pool, lease));
}

}  // namespace
}  // namespace beluga

NB_MODULE(_native, m) {
  using namespace beluga;
  // An engine that exits without closing its pool is no reason to print at people.
  nb::set_leak_warnings(false);
  m.doc() = "The core of lmcache-beluga. Use lmcache_beluga.Pool.";
  nb::register_exception_translator(
      [](const std::exception_ptr& p, void*) {
        try {
          std::rethrow_exception(p);
        } catch (const Error& error) {
          raise_in_python(error);
        }
      },
      nullptr);
  bind_keys(m);

  nb::class_<View>(m, "View", nb::type_slots(view_slots), "A leased, read-only view of one chunk.")
      .def_prop_ro("size", [](const View& v) { return v.lease->size; })
      .def_prop_ro("address", [](const View& v) { return reinterpret_cast<std::uintptr_t>(v.data); })
      .def_prop_ro("slot", [](const View& v) { return v.lease->slot; })
      .def_prop_ro("generation", [](const View& v) { return v.lease->generation; })
      .def_prop_ro("released", [](const View& v) { return v.released.load(); })
      .def_prop_ro("record",
                   [](const View& v) { return to_bytes(v.lease->record()); })
      .def_prop_ro("meta",
                   [](const View& v) {
                     return to_bytes(v.lease->meta());
                   })
      .def("valid", [](View& v) { return !v.released && v.pool->valid(*v.lease); })
      .def("release", &View::release)
      .def("array", [](nb::handle_t<View> self) {
        const View& v = nb::cast<const View&>(self);
        if (v.released) throw Error(ErrorKind::invalid_argument, "this view was released");
        const std::size_t shape[1] = {v.lease->size};
        return ReadOnly1D(v.data, 1, shape, self);
      });

  nb::class_<Reservation>(m, "Reservation", nb::type_slots(reservation_slots), "A slot to write into.")
      .def_prop_ro("size", [](const Reservation& r) { return r.bytes; })
      .def_prop_ro("capacity", [](const Reservation& r) { return r.slot.capacity; })
      .def_prop_ro("slot", [](const Reservation& r) { return r.slot.number; })
      .def_prop_ro("address", [](const Reservation& r) { return reinterpret_cast<std::uintptr_t>(r.slot.address); })
      .def_prop_ro("done", [](const Reservation& r) { return r.done.load(); })
      .def("commit", &commit_slot, "key"_a, "meta"_a, "depth"_a, "size"_a.none(), "keep"_a)
      .def("abort",
           [](Reservation& r) {
             nb::gil_scoped_release unlocked;
             r.abort();
           })
      .def("array", [](nb::handle_t<Reservation> self) {
        const Reservation& r = nb::cast<const Reservation&>(self);
        if (r.done) throw Error(ErrorKind::invalid_argument, "the reservation was already committed or aborted");
        const std::size_t shape[1] = {r.bytes};
        return Bytes1D(r.slot.address, 1, shape, self);
      });

  m.def(
      "format",
      [](nb::handle path, std::uint64_t size, const Options& options) {
        const auto paths = paths_of(path);
        const FormatOptions o = format_options(options);
        nb::gil_scoped_release unlocked;
        format_pool(paths, size, o);
      },
      "path"_a, "size"_a, "options"_a);
  m.def(
      "geometry",
      [](nb::handle path) {
        const auto paths = paths_of(path);
        std::shared_ptr<PoolMemory> pool;
        {
          nb::gil_scoped_release unlocked;
          pool = open_pool(paths, 30'000);
        }
        return geometry(*pool);
      },
      "path"_a);
  m.def(
      "attach",
      [](nb::handle path, const Options& options) {
        const auto paths = paths_of(path);
        const AttachOptions o = attach_options(options);
        nb::gil_scoped_release unlocked;
        return attach_pool(open_pool(paths, o.open_timeout_ms), o);
      },
      "path"_a, "options"_a);
  m.def(
      "open",
      [](nb::handle path, std::uint64_t size, const Options& format, const Options& options) {
        const auto paths = paths_of(path);
        const FormatOptions f = format_options(format);
        const AttachOptions o = attach_options(options);
        nb::gil_scoped_release unlocked;
        return attach_pool(open_or_format_pool(paths, size, f, o.open_timeout_ms), o);
      },
      "path"_a, "size"_a, "format"_a, "options"_a);
  m.def("live_views", [] { return live_views.load(); }, "Views of this process that were not released.");
  m.def(
      "copy_bandwidth",
      [](nb::handle to, nb::handle from, bool to_pool, int threads) {
        const HeldBuffer target(to, true);
        const HeldBuffer source(from, false);
        const std::size_t n = std::min(target.bytes().size(), source.bytes().size());
        nb::gil_scoped_release unlocked;
        CopyEngine engine(threads);
        const auto start = std::chrono::steady_clock::now();
        if (to_pool) {
          engine.copy_to_pool(target.bytes().data(), source.bytes().data(), n);
        } else {
          engine.copy_from_pool(target.bytes().data(), source.bytes().data(), n);
        }
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        return static_cast<double>(n) / seconds.count();
      },
      "target"_a, "source"_a, "to_pool"_a, "threads"_a, "Bytes per second of one copy by the streaming engine.");

  nb::class_<PoolCore>(m, "Pool", "One process's handle on one pool.")
      .def_prop_ro("geometry", [](const PoolPtr& p) { return geometry(*p->context().pool); })
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
               nb::gil_scoped_release unlocked;
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
             nb::gil_scoped_release unlocked;
             return p->contains_prefix(batch->prints);
           }, "keys"_a)
      .def("pin_prefix",
           [](const PoolPtr& p, nb::handle keys) {
             ScratchBatch batch;
             read_keys(keys.ptr(), *batch);
             nb::gil_scoped_release unlocked;
             return p->pin_prefix(*batch);
           }, "keys"_a)
      .def("unpin",
           [](const PoolPtr& p, nb::handle key) {
             ScratchBatch batch;
             read_key(key.ptr(), *batch);
             nb::gil_scoped_release unlocked;
             return p->unpin(batch->prints[0]);
           }, "key"_a)
      .def("unpin_all",
           [](const PoolPtr& p) {
             nb::gil_scoped_release unlocked;
             return p->unpin_all();
           })
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
             nb::gil_scoped_release unlocked;
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
      .def("evict",
           [](const PoolPtr& p, std::uint64_t bytes) {
             nb::gil_scoped_release unlocked;
             return p->evict(bytes);
           }, "nbytes"_a)
      .def("entries",
           [](const PoolPtr& p, std::uint32_t cursor, std::size_t most) -> nb::typed<nb::tuple, nb::typed<nb::list, Facts>, std::uint32_t, bool> {
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
             return nb::make_tuple(out, cursor, cursor >= p->context().pool->slot_limit());
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
             nb::typed<nb::list, Facts> out;
             for (const HostView& v : views) {
               nb::dict d;
               d["id"] = v.id;
               d["state"] = v.state == static_cast<std::uint32_t>(HostState::member) ? "member" : "retired";
               d["incarnation"] = v.incarnation;
               d["tick"] = v.tick;
               d["processes"] = v.processes;
               d["extents"] = v.extents;
               d["live"] = v.live;
               d["self"] = v.self;
               d["name"] = nb::str(v.name.c_str(), v.name.size());
               nb::dict counters;
               for (std::size_t c = 0; c < kCounts; ++c) counters[kCountNames[c]] = v.counters[c];
               d["counters"] = counters;
               out.append(d);
             }
             return out;
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
