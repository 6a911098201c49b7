#include "bindings_tasks.hpp"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <map>

#include "batch_tasks.hpp"
#include "bindings_chunks.hpp"
#include "bindings_gil.hpp"
#include "bindings_keys.hpp"
#include "errors.hpp"
#include "object_salt.hpp"

namespace beluga {

using namespace nb::literals;

namespace {

/// (address, bytes) pairs: memory that the caller keeps until its task has ended.
using Addresses = nb::typed<nb::sequence, nb::typed<nb::tuple, std::uintptr_t, std::size_t>>;
using Metas = nb::typed<nb::sequence, nb::bytes>;
/// Task, results of its keys (PutResult), what went wrong.
using Stored = nb::typed<nb::tuple, std::uint64_t, nb::bytes, nb::str>;
/// A byte for each key, 1 if it was found; what went wrong.
using Found = nb::typed<nb::tuple, nb::bytes, nb::str>;

constexpr std::size_t kWalkBatch = 4096;

std::vector<std::span<std::byte>> spans_of(const Addresses& pairs, std::size_t expected) {
  std::vector<std::span<std::byte>> spans;
  spans.reserve(expected);
  for (nb::handle item : pairs) {
    const auto pair = nb::cast<nb::tuple>(item);
    if (pair.size() != 2) throw Error(ErrorKind::invalid_argument, "memory is an (address, bytes) pair");
    spans.emplace_back(reinterpret_cast<std::byte*>(nb::cast<std::uintptr_t>(pair[0])),
                       nb::cast<std::size_t>(pair[1]));
    if (spans.back().empty()) throw Error(ErrorKind::invalid_argument, "a chunk must have at least one byte");
  }
  if (spans.size() != expected) {
    throw Error(ErrorKind::invalid_argument,
                std::to_string(expected) + " keys and " + std::to_string(spans.size()) + " buffers");
  }
  return spans;
}

std::vector<std::string> strings_of(const Metas& metas, std::size_t expected) {
  std::vector<std::string> strings;
  strings.reserve(expected);
  for (nb::handle item : metas) {
    const auto meta = nb::cast<nb::bytes>(item);
    strings.emplace_back(meta.c_str(), meta.size());
  }
  if (strings.size() != expected) throw Error(ErrorKind::invalid_argument, "give one metadata for each key");
  return strings;
}

std::optional<Found> as_python(const std::optional<FindOutcome>& outcome) {
  if (!outcome) return std::nullopt;
  const nb::bytes hits(outcome->hits.data(), outcome->hits.size());
  return nb::borrow<Found>(nb::make_tuple(hits, outcome->trouble));
}

}  // namespace

void bind_tasks(nb::module_& m) {
  nb::class_<BatchTasks>(m, "BatchTasks", "Batches of work on a pool, done by a few native threads.")
      .def("__init__", [](BatchTasks* self, const PoolPtr& pool) { new (self) BatchTasks(pool); }, "pool"_a)
      .def_prop_ro("store_fd", &BatchTasks::store_fd)
      .def_prop_ro("lookup_fd", &BatchTasks::lookup_fd)
      .def_prop_ro("load_fd", &BatchTasks::load_fd)
      .def_prop_ro("pending", &BatchTasks::pending)
      .def("submit_store",
           [](BatchTasks& tasks, nb::handle keys, const Addresses& sources, const Metas& metas,
              std::uint32_t first_depth) {
             StoreBatch batch;
             read_keys(keys.ptr(), batch.keys);
             const auto spans = spans_of(sources, batch.keys.size());
             batch.sources.assign(spans.begin(), spans.end());
             batch.metas = strings_of(metas, batch.keys.size());
             batch.first_depth = first_depth;
             nb::gil_scoped_release unlocked;
             return tasks.submit_store(std::move(batch));
           }, "keys"_a, "sources"_a, "metas"_a, "first_depth"_a)
      .def("submit_lookup",
           [](BatchTasks& tasks, nb::handle keys) {
             KeyBatch batch;
             read_keys(keys.ptr(), batch);
             const UnlockedIfLong unlocked(batch.size());
             return tasks.submit_lookup(std::move(batch));
           }, "keys"_a)
      .def("submit_load",
           [](BatchTasks& tasks, nb::handle keys, const Addresses& buffers, const Metas& metas) {
             LoadBatch batch;
             read_keys(keys.ptr(), batch.keys);
             batch.buffers = spans_of(buffers, batch.keys.size());
             batch.metas = strings_of(metas, batch.keys.size());
             nb::gil_scoped_release unlocked;
             return tasks.submit_load(std::move(batch));
           }, "keys"_a, "buffers"_a, "metas"_a)
      .def("take_stores",
           [](BatchTasks& tasks) -> nb::typed<nb::list, Stored> {
             nb::typed<nb::list, Stored> out;
             for (const auto& [id, outcome] : tasks.take_stores()) {
               std::string results;
               for (const PutResult result : outcome.results) results.push_back(static_cast<char>(result));
               out.append(nb::make_tuple(id, nb::bytes(results.data(), results.size()), outcome.trouble));
             }
             return out;
           })
      .def("take_lookup", [](BatchTasks& tasks, std::uint64_t id) { return as_python(tasks.take_lookup(id)); }, "id"_a)
      .def("take_load", [](BatchTasks& tasks, std::uint64_t id) { return as_python(tasks.take_load(id)); }, "id"_a)
      .def("close", [](BatchTasks& tasks) {
        nb::gil_scoped_release unlocked;
        tasks.close();
      });

  m.def(
      "usage_by_salt",
      [](const PoolPtr& pool) -> nb::typed<nb::tuple, std::uint64_t, nb::typed<nb::dict, nb::bytes, std::uint64_t>> {
        std::uint64_t total = 0;
        std::map<std::string, std::uint64_t, std::less<>> salts;
        {
          nb::gil_scoped_release unlocked;
          std::uint32_t cursor = 0;
          const std::uint32_t end = pool->context().pool->slot_limit();
          while (cursor < end) {
            for (const Entry& entry : pool->list(cursor, kWalkBatch)) {
              total += entry.size;
              const auto salt = object_salt(entry.record);
              if (!salt) continue;
              const auto it = salts.find(*salt);
              if (it != salts.end()) {
                it->second += entry.size;
              } else {
                salts.emplace(*salt, entry.size);
              }
            }
          }
        }
        nb::typed<nb::dict, nb::bytes, std::uint64_t> by_salt;
        for (const auto& [salt, bytes] : salts) by_salt[nb::bytes(salt.data(), salt.size())] = bytes;
        return nb::make_tuple(total, by_salt);
      },
      "pool"_a, "Bytes of all chunks, and of those under ObjectKeys by cache_salt (UTF-8). Walks the pool.");
}

}  // namespace beluga
