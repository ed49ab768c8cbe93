/* The runtime for CUDA devices as one position-independent object, tilewright/runtime/tw_cuda.o: what an ahead-of-time artifact for a GPU
 * links beside tw_runtime.o. Compiled as that one is; refers to it, to the C library and to nothing of CUDA. The anonymous
 * namespaces of these files merge here, so their names must differ. */
#include "cuda_driver.cpp"
#include "cuda_device.cpp"
#include "cuda_instance.cpp"
#include "cuda_run.cpp"
