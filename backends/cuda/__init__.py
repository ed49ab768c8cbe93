"""The CUDA backend: kernels as CUDA C++ source, compiled and run through the driver."""
