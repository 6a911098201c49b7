#pragma once

#include <nanobind/nanobind.h>

namespace beluga {

/// Adds what measures memory to the module.
void bind_probe(nanobind::module_& m);

}  // namespace beluga
