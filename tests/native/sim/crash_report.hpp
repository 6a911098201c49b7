#pragma once

namespace sim {

/// From now on an abort or a segmentation fault first prints the seed and the last events of this
/// thread's world.
void report_crashes();

}  // namespace sim
