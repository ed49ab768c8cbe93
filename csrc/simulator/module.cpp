/* Python bindings: tilewright.backends._simulator. Bindings only; what they promise is in accelerator.h.
 *
 * A Simulator owns loaded code and the steps; a run has a machine of its own, so runs may happen at once. The interpreter's lock is
 * released while one runs. Arrays are contiguous bytes, which the caller has checked against the program's inputs and outputs.
 */
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <vector>

#include "../bindings.h"
#include "accelerator.h"

namespace py = pybind11;
using bindings::raise;

namespace {

using operand_row = std::tuple<int64_t, int64_t, bool, bool, std::vector<int64_t>>; /* address, bytes, read, stored, strides */
/* kind, space, number, offset, address, bytes, cycles, operands, label */
using step_row = std::tuple<int, int, int64_t, int64_t, int64_t, int64_t, int64_t, std::vector<operand_row>, std::string>;

simulator::step step_of(const step_row &row) {
  const auto &[kind, space, number, offset, address, bytes, cycles, operands, label] = row;
  simulator::step made = {static_cast<simulator::kind>(kind), static_cast<simulator::space>(space), number, offset, address, bytes,
                          cycles, {}, label};
  for (const auto &[begin, size, read, stored, strides] : operands) made.operands.push_back({{begin, size, read, stored}, strides});
  return made;
}

simulator::chunk chunk_of(const py::buffer &buffer, bool writable) {
  py::buffer_info info = buffer.request(writable);
  return {static_cast<uint8_t *>(info.ptr), info.size * info.itemsize};
}

class Simulator {
 public:
  Simulator(const py::buffer &object_code, const std::string &symbol, const py::object &constants, const std::string &name,
            int64_t scratchpad_bytes, int64_t alignment, int64_t banks, int64_t transfer_bytes_per_cycle, int64_t transfer_latency,
            int64_t workspace_bytes, const std::vector<step_row> &steps)
      : constants_(constants),
        facts_{name, scratchpad_bytes, alignment, banks, transfer_bytes_per_cycle, transfer_latency, workspace_bytes} {
    for (const step_row &row : steps) steps_.push_back(step_of(row));
    code_ = bindings::load_code(object_code, {});
    size_t size = 0;
    const void *place = tw_code_symbol(code_.get(), symbol.c_str(), &size);
    if (place == nullptr || size < sizeof(tw_model)) raise("ArtifactError", "object code: it does not define '" + symbol + "'");
    model_ = static_cast<const tw_model *>(place);
    if (model_->abi_version != TW_ABI_VERSION) raise("ArtifactError", "object code: it is for another version of the runtime");
  }

  py::dict run(const std::vector<py::buffer> &inputs, const std::vector<py::buffer> &outputs) const {
    std::vector<simulator::chunk> given, results;
    for (const py::buffer &one : inputs) given.push_back(chunk_of(one, false));
    for (const py::buffer &one : outputs) results.push_back(chunk_of(one, true));
    const simulator::chunk constants = constants_.is_none() ? simulator::chunk{nullptr, 0} : chunk_of(constants_.cast<py::buffer>(), false);
    const simulator::code generated = {model_->thread, model_->thread_bytes, model_->sites, model_->site_count};
    simulator::account account;
    std::string failure;
    int32_t status = TW_OK;
    {
      py::gil_scoped_release release;
      try {
        simulator::machine machine(facts_, generated, given, results, constants);
        account = machine.run(steps_);
      } catch (const simulator::trap &caught) {
        failure = caught.what();
        status = caught.status;
      }
    }
    if (status != TW_OK) raise(status == TW_ERROR_INDEX ? "IndexFailure" : "RuntimeFailure", failure);
    py::dict found;
    found["read"] = account.read;
    found["written"] = account.written;
    found["compulsory"] = account.compulsory;
    found["peak"] = account.peak;
    found["transfers"] = account.transfers;
    found["launches"] = account.launches;
    found["cycles"] = account.cycles;
    found["computing"] = account.computing;
    found["transferring"] = account.transferring;
    return found;
  }

  int64_t thread_bytes() const { return model_->thread_bytes; }

 private:
  bindings::loaded_code code_;
  const tw_model *model_ = nullptr;
  py::object constants_;
  simulator::machine_facts facts_;
  std::vector<simulator::step> steps_;
};

}  // namespace

PYBIND11_MODULE(_simulator, module) {
  module.doc() = "A simulated accelerator with a scratchpad; see csrc/simulator/accelerator.h.";
  py::class_<Simulator>(module, "Simulator")
      .def(py::init<const py::buffer &, const std::string &, const py::object &, const std::string &, int64_t, int64_t, int64_t, int64_t,
                    int64_t, int64_t, const std::vector<step_row> &>(),
           py::arg("object_code"), py::arg("symbol"), py::arg("constants"), py::arg("name"), py::arg("scratchpad_bytes"),
           py::arg("alignment"), py::arg("banks"), py::arg("transfer_bytes_per_cycle"), py::arg("transfer_latency"),
           py::arg("workspace_bytes"), py::arg("steps"))
      .def("run", &Simulator::run, py::arg("inputs"), py::arg("outputs"))
      .def_property_readonly("thread_bytes", &Simulator::thread_bytes, "Memory of its own that a launch has beside the scratchpad.");
}
