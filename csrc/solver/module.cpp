/* Python bindings: tilewright.packing._solver. Bindings only; what they promise is in packing.h.
 *
 * Assumes items that tilewright.packing has checked. The interpreter's lock is released while a search runs, and taken now and then to
 * look for signals: Ctrl-C ends a search with KeyboardInterrupt.
 */
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <tuple>
#include <vector>

#include "packing.h"

namespace py = pybind11;

namespace {

using rows = std::vector<std::array<int64_t, 4>>; /* lower, upper, size, alignment */

std::vector<packing::item> items_of(const rows &given) {
  std::vector<packing::item> items;
  items.reserve(given.size());
  for (const auto &[lower, upper, size, alignment] : given) items.push_back({lower, upper, size, alignment});
  return items;
}

const char *name_of(packing::verdict found) {
  switch (found) {
    case packing::verdict::packed: return "packed";
    case packing::verdict::impossible: return "impossible";
    default: return "unknown";
  }
}

std::tuple<const char *, std::vector<int64_t>, int64_t> fit(const rows &given, int64_t capacity, int64_t nodes, double seconds) {
  const std::vector<packing::item> items = items_of(given);
  bool interrupted = false;
  packing::answer result;
  {
    py::gil_scoped_release release;
    packing::budget left(nodes, seconds, [&interrupted] {
      py::gil_scoped_acquire acquire;
      return interrupted = PyErr_CheckSignals() != 0;
    });
    result = packing::fit(items, capacity, left);
  }
  if (interrupted) throw py::error_already_set();
  return {name_of(result.found), std::move(result.offsets), result.nodes};
}

std::vector<int64_t> fit_greedily(const rows &given) {
  const std::vector<packing::item> items = items_of(given);
  py::gil_scoped_release release;
  return packing::fit_greedily(items);
}

}  // namespace

PYBIND11_MODULE(_solver, module) {
  module.doc() = "Exact and greedy packing of items with lifetimes; see csrc/solver/packing.h.";
  module.def("fit", &fit, py::arg("items"), py::arg("capacity"), py::arg("nodes"), py::arg("seconds"));
  module.def("fit_greedily", &fit_greedily, py::arg("items"));
  module.def("lower_bound", [](const rows &given) { return packing::lower_bound(items_of(given)); }, py::arg("items"));
}
