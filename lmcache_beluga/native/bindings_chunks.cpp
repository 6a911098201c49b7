#include "bindings_chunks.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <vector>

#include "bindings_gil.hpp"
#include "bindings_keys.hpp"
#include "errors.hpp"

namespace beluga {

using namespace nb::literals;

namespace {

nb::bytes to_bytes(std::span<const std::byte> bytes) { return nb::bytes(bytes.data(), bytes.size()); }

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
Committed commit_slot(Reservation& r, nb::handle key, const nb::bytes& meta, std::uint32_t depth, nb::object size,
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
  return nb::borrow<Committed>(nb::make_tuple(static_cast<int>(result), view_or_none(r.pool, lease)));
}

bool is_valid(const View& view) { return !view.released && view.pool->valid(*view.lease); }

// These two are for servers with so many views that a call for each shows.

bool all_valid(const nb::typed<nb::list, View>& views) {
  std::vector<nb::object> kept;  // whatever other threads do to the list
  std::vector<const View*> all;
  bool verify = false;
  for (nb::handle one : views) {
    all.push_back(&nb::cast<const View&>(one));
    kept.push_back(nb::borrow(one));
    verify = verify || all.back()->pool->context().options.verify;
  }
  const UnlockedIfLong unlocked(verify ? SIZE_MAX : 0);  // reads the whole chunks
  return std::all_of(all.begin(), all.end(), [](const View* view) { return is_valid(*view); });
}

void release_all(const nb::typed<nb::list, View>& views) {
  for (nb::handle one : views) nb::cast<View&>(one).release();
}

}  // namespace

nb::typed<nb::list, Committed> commit_slots(const PoolPtr& pool, const std::vector<std::shared_ptr<Reservation>>& slots,
                                            nb::handle keys, const std::vector<nb::bytes>& metas,
                                            const std::vector<std::uint64_t>& sizes,
                                            const std::vector<std::uint32_t>& depths, bool keep) {
  ScratchBatch batch;
  read_keys(keys.ptr(), *batch);
  const std::size_t n = slots.size();
  if (batch->size() != n || metas.size() != n || sizes.size() != n || depths.size() != n) {
    throw Error(ErrorKind::invalid_argument, "give a key, metadata, a size and a depth for each reservation");
  }
  std::vector<std::span<const std::byte>> meta_spans;
  for (std::size_t i = 0; i < n; ++i) {
    if (sizes[i] == 0 || sizes[i] > slots[i]->bytes) {
      throw Error(ErrorKind::invalid_argument, "a size must be 1 to the bytes reserved");
    }
    meta_spans.emplace_back(reinterpret_cast<const std::byte*>(metas[i].c_str()), metas[i].size());
  }
  std::vector<PutResult> results(n, PutResult::refused);
  std::vector<std::shared_ptr<Lease>> leases(n);
  {
    nb::gil_scoped_release unlocked;
    KeyBatch one;
    for (std::size_t i = 0; i < n; ++i) {
      if (slots[i]->pool != pool || slots[i]->done.exchange(true)) {
        throw Error(ErrorKind::invalid_argument, "a reservation was already committed or aborted");
      }
      one.clear();
      one.add(batch->record(i));
      results[i] = pool->commit(slots[i]->slot, one, meta_spans[i], sizes[i], depths[i], keep ? &leases[i] : nullptr);
    }
  }
  nb::typed<nb::list, Committed> out;
  for (std::size_t i = 0; i < n; ++i) {
    out.append(nb::make_tuple(static_cast<int>(results[i]), view_or_none(pool, leases[i])));
  }
  return out;
}

View::View(PoolPtr p, std::shared_ptr<Lease> l) : pool(std::move(p)), lease(std::move(l)) {
  data = pool->address_of(*lease);
  pool->views.fetch_add(1, std::memory_order_relaxed);
}

void View::release() {
  if (released.exchange(true)) return;
  pool->views.fetch_sub(1, std::memory_order_relaxed);
  pool->release(lease);
}

nb::object view_or_none(const PoolPtr& pool, std::shared_ptr<Lease>& lease) {
  if (!lease) return nb::none();
  return nb::cast(std::make_shared<View>(pool, std::move(lease)));
}

void bind_chunks(nb::module_& m) {
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
      .def("valid",
           [](const View& v) {
             const UnlockedIfLong unlocked(v.pool->context().options.verify ? SIZE_MAX : 0);  // reads the whole chunk
             return is_valid(v);
           })
      .def("release", &View::release)
      .def_static("all_valid", &all_valid, "views"_a, "Whether each one is valid().")
      .def_static("release_all", &release_all, "views"_a)
      .def_prop_ro("array", [](nb::handle_t<View> self) {
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
      .def_prop_ro("array", [](nb::handle_t<Reservation> self) {
        const Reservation& r = nb::cast<const Reservation&>(self);
        if (r.done) throw Error(ErrorKind::invalid_argument, "the reservation was already committed or aborted");
        const std::size_t shape[1] = {r.bytes};
        return Bytes1D(r.slot.address, 1, shape, self);
      });
}

}  // namespace beluga
