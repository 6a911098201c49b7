#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "errors.hpp"

namespace beluga {

namespace nb = nanobind;

using Objects = nb::typed<nb::sequence, nb::any>;

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

}  // namespace beluga
