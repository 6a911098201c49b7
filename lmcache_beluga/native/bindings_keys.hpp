#pragma once

#include <nanobind/nanobind.h>

#include "key_record.hpp"

namespace beluga {

/// Reads a list, tuple or other sequence of keys into `batch`, which is emptied first.
///
/// A key is an LMCache CacheEngineKey, LayerCacheEngineKey or ObjectKey, or `bytes` (a record
/// itself, not empty). Needs the GIL. Throws Error(invalid_argument) naming the position and what
/// is wrong with the key, or nb::python_error when reading an attribute raised.
void read_keys(PyObject* sequence, KeyBatch& batch);

/// The same for one key: a batch of one.
void read_key(PyObject* key, KeyBatch& batch);

/// Lends the calling thread's KeyBatch, so that a call allocates nothing once the thread is warm.
///
///     ScratchBatch scratch;
///     read_keys(keys.ptr(), *scratch);
///     nb::gil_scoped_release unlocked;
///     pool.contains(scratch->prints, ...);
///
/// Re-entrant: when the garbage collector runs another pool method inside this one, that one gets a
/// batch of its own.
class ScratchBatch {
 public:
  ScratchBatch();
  ~ScratchBatch();
  ScratchBatch(const ScratchBatch&) = delete;
  ScratchBatch& operator=(const ScratchBatch&) = delete;

  KeyBatch& operator*() const noexcept { return *batch_; }
  KeyBatch* operator->() const noexcept { return batch_; }

 private:
  KeyBatch* batch_;
  bool own_;
};

/// Adds encode_keys(keys) -> list[bytes] and fingerprints(keys) -> list[int] to the module.
void bind_keys(nanobind::module_& m);

}  // namespace beluga
