/* Python bindings: tilewright.backends._simulator. Bindings only; what they promise is in accelerator.h.
 *
 * A Simulator owns loaded code and the steps; a run has a machine of its own, so runs may happen at once. The interpreter's lock is
 * released while one runs. Arrays are contiguous bytes, which the caller has checked against the program's inputs and outputs.
 */
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "../elf_loader.h"
#include "accelerator.h"

namespace py = pybind11;

namespace {

using operand_row = std::tuple<int64_t, int64_t, bool, bool>; /* address, bytes, read, stored */
/* kind, space, number, offset, address, bytes, cycles, operands, label */
using step_row = std::tuple<int, int, int64_t, int64_t, int64_t, int64_t, int64_t, std::vector<operand_row>, std::string>;

[[noreturn]] void raise(const char *kind, const std::string &message) {
  py::object type = py::module_::import("tilewright.ir.errors").attr(kind);
  PyErr_SetObject(type.ptr(), py::str(message).ptr());
  throw py::error_already_set();
}

simulator::step step_of(const step_row &row) {
  const auto &[kind, space, number, offset, address, bytes, cycles, operands, label] = row;
  simulator::step made = {static_cast<simulator::kind>(kind), static_cast<simulator::space>(space), number, offset, address, bytes,
                          cycles, {}, label};
  for (const auto &[begin, size, read, stored] : operands) made.operands.push_back({begin, size, read, stored});
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
    static const tw_external externals[] = {
        {"memcpy", address(static_cast<void *(*)(void *, const void *, size_t)>(std::memcpy))},
        {"memmove", address(static_cast<void *(*)(void *, const void *, size_t)>(std::memmove))},
        {"memset", address(static_cast<void *(*)(void *, int, size_t)>(std::memset))},
    };
    py::buffer_info bytes = object_code.request();
    char error[1024] = "";
    code_.reset(tw_code_load(static_cast<const uint8_t *>(bytes.ptr), static_cast<size_t>(bytes.size * bytes.itemsize), externals,
                             sizeof externals / sizeof externals[0], error, sizeof error));
    if (code_ == nullptr) raise("ArtifactError", error);
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
  template <typename Function>
  static const void *address(Function *function) { return reinterpret_cast<const void *>(function); }
  struct unload {
    void operator()(tw_code *code) const { tw_code_free(code); }
  };

  std::unique_ptr<tw_code, unload> code_;
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
