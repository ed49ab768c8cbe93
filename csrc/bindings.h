/* What the extensions that load models share: errors, descriptions and code as Python has them.
 *
 * Needs pybind11 and, but for loading code, the interpreter's lock. Ownership: the code of `load_code` is the caller's; Python
 * objects are new references. Errors leave as the public classes of tilewright.ir.errors.
 */
#ifndef TILEWRIGHT_BINDINGS_H
#define TILEWRIGHT_BINDINGS_H
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstring>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "abi.h"
#include "elf_loader.h"

namespace bindings {

namespace py = pybind11;

/* Of each dtype code in abi.h, as NumPy or ml_dtypes spells it. */
inline const char *const dtype_names[] = {"bool",   "int8",   "int16",  "int32",   "int64",    "uint8",   "uint16",
                                          "uint32", "uint64", "float16", "bfloat16", "float32", "float64",
                                          "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu",
                                          "float4_e2m1fn", "int4", "uint4", "int2", "uint2"};

/* Throws the class `kind` of tilewright.ir.errors. */
[[noreturn]] inline void raise(const char *kind, const std::string &message) {
  py::object type = py::module_::import("tilewright.ir.errors").attr(kind);
  /* a damaged file may have any bytes in the names that messages quote */
  PyObject *text = PyUnicode_DecodeUTF8(message.data(), static_cast<Py_ssize_t>(message.size()), "backslashreplace");
  if (text == nullptr) throw py::error_already_set();
  PyErr_SetObject(type.ptr(), text);
  Py_DECREF(text);
  throw py::error_already_set();
}

/* Throws the class that a status of abi.h stands for. */
[[noreturn]] inline void raise_status(int32_t status, const std::string &message) {
  switch (status) {
    case TW_ERROR_SHAPE: case TW_ERROR_ARGUMENT: raise("ArgumentError", message);
    case TW_ERROR_VERSION: case TW_ERROR_CPU: case TW_ERROR_FILE: raise("ArtifactError", message);
    case TW_ERROR_INDEX: raise("IndexFailure", message);
    default: raise("RuntimeFailure", message);
  }
}

inline py::object dtype_object(int32_t code) {
  if (code < 0 || code >= static_cast<int32_t>(std::size(dtype_names))) raise("ArtifactError", "the model's description is damaged: bad tensor descriptor");
  if (code == TW_BFLOAT16 || code > TW_FLOAT64) /* what NumPy itself does not have */
    return py::dtype::from_args(py::module_::import("ml_dtypes").attr(dtype_names[code]));
  return py::dtype(std::string(dtype_names[code]));
}

/* [(name, dtype, shape)]; a size that is not known is a string, its name. */
inline py::list describe_tensors(const tw_tensor_descriptor *tensors, int32_t count) {
  py::list result;
  for (int32_t index = 0; index < count; index++) {
    const tw_tensor_descriptor &tensor = tensors[index];
    py::tuple shape(tensor.rank);
    for (int32_t axis = 0; axis < tensor.rank; axis++) {
      const char *name = tensor.dim_names == nullptr ? nullptr : tensor.dim_names[axis];
      shape[axis] = tensor.dims[axis] >= 0 ? py::object(py::int_(tensor.dims[axis])) : py::object(py::str(name == nullptr ? "?" : name));
    }
    result.append(py::make_tuple(tensor.name, dtype_object(tensor.dtype), shape));
  }
  return result;
}

inline py::list describe_strings(const char *const *strings, int32_t count) {
  py::list result;
  for (int32_t index = 0; index < count; index++) result.append(strings[index]);
  return result;
}

/* The properties that a model's description gives in each extension. `of`: a function from the bound class to its tw_model. */
template <typename Class, typename Description>
void bind_description(Class &bound, Description of) {
  bound.def_property_readonly("name", [of](const typename Class::type &self) { return of(self)->name; })
      .def_property_readonly("target", [of](const typename Class::type &self) { return of(self)->target; })
      .def_property_readonly("version", [of](const typename Class::type &self) { return of(self)->version; })
      .def_property_readonly("abi_version", [of](const typename Class::type &self) { return of(self)->abi_version; })
      .def_property_readonly("constants_bytes", [of](const typename Class::type &self) { return of(self)->constants_bytes; })
      .def_property_readonly("constants_digest", [of](const typename Class::type &self) { return of(self)->constants_digest; })
      .def_property_readonly("constants_embedded", [of](const typename Class::type &self) { return of(self)->constants != nullptr; })
      .def_property_readonly("static_workspace", [of](const typename Class::type &self) { return of(self)->static_workspace; })
      .def_property_readonly("inputs", [of](const typename Class::type &self) { return describe_tensors(of(self)->inputs, of(self)->input_count); })
      .def_property_readonly("outputs", [of](const typename Class::type &self) { return describe_tensors(of(self)->outputs, of(self)->output_count); })
      .def_property_readonly("kernels", [of](const typename Class::type &self) { return describe_strings(of(self)->kernel_names, of(self)->kernel_count); })
      .def_property_readonly("sites", [of](const typename Class::type &self) { return describe_strings(of(self)->sites, of(self)->site_count); });
}

template <typename Function>
const void *address(Function *function) { return reinterpret_cast<const void *>(function); }

struct unload {
  void operator()(tw_code *code) const { tw_code_free(code); }
};
using loaded_code = std::unique_ptr<tw_code, unload>;

/* Loads object code that may call the C library's memory functions and `externals`; ArtifactError for what cannot be loaded. */
inline loaded_code load_code(const py::buffer &object_code, std::vector<tw_external> externals) {
  externals.push_back({"memcpy", address(static_cast<void *(*)(void *, const void *, size_t)>(std::memcpy))});
  externals.push_back({"memmove", address(static_cast<void *(*)(void *, const void *, size_t)>(std::memmove))});
  externals.push_back({"memset", address(static_cast<void *(*)(void *, int, size_t)>(std::memset))});
  const py::buffer_info bytes = object_code.request();
  char error[1024] = "";
  loaded_code code(tw_code_load(static_cast<const uint8_t *>(bytes.ptr), static_cast<size_t>(bytes.size * bytes.itemsize), externals.data(),
                                externals.size(), error, sizeof error));
  if (code == nullptr) raise("ArtifactError", error);
  return code;
}

}  // namespace bindings
#endif
