#pragma once

#include <nanobind/nanobind.h>

namespace beluga {

/// Adds the class BatchTasks and usage_by_salt() to the module.
void bind_tasks(nanobind::module_& m);

}  // namespace beluga
