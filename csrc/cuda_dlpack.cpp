/* DLPack capsules in and out; see cuda_dlpack.h.
 *
 * Ownership: what `open_dlpack` read belongs to the keeper that it returns, whose end releases the tensor; a capsule that
 * `make_dlpack` made holds a reference to its owner until the consumer releases it. */
#include "cuda_dlpack.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "dlpack.h"

namespace py = pybind11;

namespace {

/* (address, (device type, number), shape, strides in elements or None, (code, bits, lanes), keeper) of a capsule. */
py::tuple open_dlpack(py::capsule capsule) {
  dlpack::managed_tensor *managed = dlpack::find_tensor(capsule);
  const dlpack::tensor &tensor = managed->tensor;
  const py::capsule keeper = dlpack::keep_tensor(capsule, managed);
  py::tuple shape(tensor.rank);
  py::object strides = py::none();
  for (int32_t axis = 0; axis < tensor.rank; axis++) shape[axis] = py::int_(tensor.shape[axis]);
  if (tensor.strides != nullptr) {
    py::tuple steps(tensor.rank);
    for (int32_t axis = 0; axis < tensor.rank; axis++) steps[axis] = py::int_(tensor.strides[axis]);
    strides = std::move(steps);
  }
  return py::make_tuple(reinterpret_cast<uintptr_t>(tensor.data) + tensor.byte_offset, py::make_tuple(tensor.device_type, tensor.device_id), shape,
                        strides, py::make_tuple(tensor.code, tensor.bits, tensor.lanes), keeper);
}

/* What stands behind a capsule of ours. */
struct exported_tensor {
  dlpack::managed_tensor managed;
  std::vector<int64_t> shape;
  PyObject *owner;
};

void release_exported(dlpack::managed_tensor *managed) {
  auto *exported = static_cast<exported_tensor *>(managed->context);
  PyGILState_STATE state = PyGILState_Ensure();
  Py_DECREF(exported->owner);
  PyGILState_Release(state);
  delete exported;
}

/* A capsule over C-contiguous memory of a CUDA device, which `owner` keeps alive. */
py::object make_dlpack(uint64_t address, int32_t device, const std::vector<int64_t> &shape, int code, int bits, py::object owner) {
  auto exported = std::make_unique<exported_tensor>();
  exported->shape = shape;
  exported->shape.push_back(0); /* never empty */
  exported->owner = owner.inc_ref().ptr();
  exported->managed.tensor = {reinterpret_cast<void *>(static_cast<uintptr_t>(address)), dlpack::cuda, device, static_cast<int32_t>(shape.size()),
                              static_cast<uint8_t>(code), static_cast<uint8_t>(bits), 1, exported->shape.data(), nullptr, 0};
  exported->managed.context = exported.get();
  exported->managed.deleter = release_exported;
  PyObject *capsule = PyCapsule_New(&exported->managed, "dltensor", [](PyObject *self) {
    if (PyCapsule_IsValid(self, "dltensor") == 0) return; /* taken over */
    auto *managed = static_cast<dlpack::managed_tensor *>(PyCapsule_GetPointer(self, "dltensor"));
    managed->deleter(managed);
  });
  if (capsule == nullptr) {
    owner.dec_ref();
    throw py::error_already_set();
  }
  exported.release(); /* belongs to the capsule */
  return py::reinterpret_steal<py::object>(capsule);
}

}  // namespace

void tw_bind_dlpack(py::module_ &module) {
  module.def("open_dlpack", &open_dlpack, py::arg("capsule"), "What a DLPack capsule says; takes it over.");
  module.def("make_dlpack", &make_dlpack, py::arg("address"), py::arg("device"), py::arg("shape"), py::arg("code"), py::arg("bits"),
             py::arg("owner"), "A DLPack capsule over memory of a device.");
}
