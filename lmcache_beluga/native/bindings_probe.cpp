#include "bindings_probe.hpp"

#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings_memory.hpp"
#include "errors.hpp"
#include "probe_memory.hpp"
#include "scratch_memory.hpp"

namespace beluga {

using namespace nb::literals;

namespace {

using Bytes1D = nb::ndarray<nb::numpy, std::uint8_t, nb::ndim<1>>;
/// A writable buffer of whole lines.
using Buffer = nb::typed<nb::object, nb::any>;

const ProbeOperation& operation_of(const std::string& name) {
  const ProbeOperation* found = probe_operation(name.c_str());
  if (found == nullptr) throw Error(ErrorKind::invalid_argument, "this CPU has no operation '" + name + "'");
  return *found;
}

}  // namespace

void bind_probe(nb::module_& m) {
  nb::class_<ScratchMemory>(m, "ScratchMemory", "Memory to measure in that holds nothing of anybody's.")
      .def_static(
          "in_dram",
          [](std::uint64_t nbytes, int cpu) {
            nb::gil_scoped_release unlocked;
            return ScratchMemory::in_dram(nbytes, cpu);
          },
          "nbytes"_a, "cpu"_a)
      .def_static(
          "in_file",
          [](const std::string& path, std::uint64_t nbytes, int cpu) {
            nb::gil_scoped_release unlocked;
            return ScratchMemory::in_file(path, nbytes, cpu);
          },
          "path"_a, "nbytes"_a, "cpu"_a)
      .def_static(
          "on_device",
          [](const std::string& path, std::uint64_t nbytes, int cpu) {
            nb::gil_scoped_release unlocked;
            return ScratchMemory::on_device(path, nbytes, cpu);
          },
          "path"_a, "nbytes"_a, "cpu"_a)
      .def_prop_ro("kind", &ScratchMemory::kind)
      .def_prop_ro("faulted", &ScratchMemory::faulted)
      .def("array", [](nb::handle_t<ScratchMemory> self) {
        const auto& memory = nb::cast<const ScratchMemory&>(self);
        const std::size_t shape[1] = {memory.size()};
        return Bytes1D(memory.data(), 1, shape, self);
      });

  m.def("probe_operations", [] {
    std::vector<std::pair<std::string, bool>> all;
    for (const ProbeOperation& one : probe_operations()) all.emplace_back(one.name, one.writes);
    return all;
  }, "Names of what can be timed on this CPU, and whether it writes.");
  m.def(
      "build_chain",
      [](const Buffer& memory, std::size_t stride, std::uint64_t seed) {
        const HeldBuffer held(memory, true);
        nb::gil_scoped_release unlocked;
        return build_chain(held.bytes(), stride, seed);
      },
      "memory"_a, "stride"_a, "seed"_a, "Links one word of every stride into a random cycle; returns how many.");
  m.def(
      "chase_chain",
      [](const Buffer& memory, std::uint64_t start, std::uint64_t hops, std::uint64_t batch, double seconds, int cpu) {
        const HeldBuffer held(memory, true);
        Chase chase;
        {
          nb::gil_scoped_release unlocked;
          chase = chase_chain(held.bytes(), start, hops, batch, seconds, cpu);
        }
        return std::pair(chase.ns, chase.end);
      },
      "memory"_a, "start"_a, "hops"_a, "batch"_a, "seconds"_a, "cpu"_a,
      "Nanoseconds per dependent load, by batch, and the offset at which it stopped.");
  m.def(
      "time_blocks",
      [](const Buffer& memory, const std::string& operation, std::size_t block, std::uint32_t samples, double seconds,
         int cpu) {
        const HeldBuffer held(memory, true);
        const ProbeOperation& run = operation_of(operation);
        nb::gil_scoped_release unlocked;
        return time_blocks(held.bytes(), run, block, samples, seconds, cpu);
      },
      "memory"_a, "operation"_a, "block"_a, "samples"_a, "seconds"_a, "cpu"_a,
      "Nanoseconds of single runs of an operation on scattered blocks.");
  m.def(
      "time_passes",
      [](const Objects& memories, const std::string& operation, const std::vector<int>& cpus, double seconds) {
        std::vector<HeldBuffer> held;
        std::vector<ProbeSpan> spans;
        for (nb::handle one : memories) spans.push_back(held.emplace_back(one, true).bytes());
        const ProbeOperation& run = operation_of(operation);
        std::vector<std::pair<std::uint64_t, double>> passes;
        nb::gil_scoped_release unlocked;
        for (const BandwidthPass& pass : time_passes(spans, run, cpus, seconds)) {
          passes.emplace_back(pass.bytes, pass.seconds);
        }
        return passes;
      },
      "memories"_a, "operation"_a, "cpus"_a, "seconds"_a,
      "Bytes and seconds of passes over the memories, by one thread on each of the CPUs.");
  m.def(
      "page_nodes",
      [](const Buffer& memory, std::uint32_t samples) {
        const HeldBuffer held(memory, false);
        nb::gil_scoped_release unlocked;
        return page_nodes(held.bytes().data(), held.bytes().size(), samples);
      },
      "memory"_a, "samples"_a, "NUMA nodes of some pages, negative where there is none; empty if unknown.");
}

}  // namespace beluga
