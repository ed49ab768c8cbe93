/* Tensors of other libraries by DLPack, in and out. */
#ifndef TILEWRIGHT_CUDA_DLPACK_H
#define TILEWRIGHT_CUDA_DLPACK_H
#include <pybind11/pybind11.h>

/* Adds `open_dlpack` and `make_dlpack` to the module. */
void tw_bind_dlpack(pybind11::module_ &module);
#endif
