/* Tensors in DLPack capsules (https://dmlc.github.io/dlpack, the C interface as of version 0.8, whose structures later versions extend).
 *
 * Needs the interpreter's lock. Ownership: a capsule's tensor belongs to the capsule until `keep_tensor` takes it over; the keeper
 * that this returns releases the tensor at its end.
 */
#ifndef TILEWRIGHT_DLPACK_H
#define TILEWRIGHT_DLPACK_H
#include <pybind11/pybind11.h>

#include <cstdint>
#include <cstring>

namespace dlpack {

constexpr int32_t cpu = 1, cuda = 2; /* types of devices */
constexpr uint8_t bfloat = 4;        /* a type of elements */

struct tensor {
  void *data;
  int32_t device_type, device_id, rank;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides; /* in elements; null strides: C order */
  uint64_t byte_offset;
};
struct managed_tensor {
  dlpack::tensor tensor;
  void *context;
  void (*deleter)(managed_tensor *);
};

/* What an unused capsule holds; ValueError for one that was used before, or is of another version. */
inline managed_tensor *find_tensor(const pybind11::capsule &capsule) {
  const char *name = PyCapsule_GetName(capsule.ptr());
  if (name == nullptr || std::strcmp(name, "dltensor") != 0)
    throw pybind11::value_error("the DLPack capsule was used before, or is of another version");
  return static_cast<managed_tensor *>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
}

/* Marks the capsule used: from here on the tensor is the keeper's to release. */
inline pybind11::capsule keep_tensor(const pybind11::capsule &capsule, managed_tensor *managed) {
  PyCapsule_SetName(capsule.ptr(), "used_dltensor");
  return pybind11::capsule(managed, [](void *pointer) {
    auto *held = static_cast<managed_tensor *>(pointer);
    if (held->deleter != nullptr) held->deleter(held);
  });
}

}  // namespace dlpack
#endif
