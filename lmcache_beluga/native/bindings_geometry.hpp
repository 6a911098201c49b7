#pragma once

#include <nanobind/nanobind.h>

#include "host_view.hpp"
#include "pool_memory.hpp"

namespace beluga {

namespace nb = nanobind;

/// A dictionary for Python to read: names to numbers, texts and lists.
using Facts = nb::typed<nb::dict, nb::str, nb::any>;

/// A pool's geometry, as PoolInfo takes it.
Facts geometry_facts(const PoolMemory& pool);

/// The hosts of a pool, as HostInfo takes them.
nb::typed<nb::list, Facts> host_facts(const std::vector<HostView>& views);

/// Adds the class Pool to the module.
void bind_pool(nb::module_& m);

}  // namespace beluga
