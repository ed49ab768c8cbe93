// CUDA's language for a C++ compiler of the host: keywords, vector types, built-in variables, declarations of the C library.
//
// Included by device.h where no CUDA compiler reads it. No header of the system is included: a kernel compiles in half a second.
// What stands for an instruction calls the emulation (emulation_hooks.h), which runs each thread of a block as a fiber.

#pragma once

#define __global__
#define __device__
#define __forceinline__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __grid_constant__

// Always part of its caller: a compiler reports no store of a struct that a call returns.
#define TW_FUNCTION static inline __attribute__((always_inline))
#define TW_MEMBER inline
// What stands for the hardware: its own accesses are no accesses of the kernel.
#define TW_HOST static inline __attribute__((no_sanitize_thread))

#define TW_INFINITY_F32 (__builtin_inff())
#define TW_INFINITY_F64 (__builtin_inf())

// A gap behind each array makes an index beyond its end visible.
#define TW_SHARED(type, name, count)                                                              \
  static type name##_memory[(count) + 256 / sizeof(type)] __attribute__((aligned(128)));          \
  type(&name)[count] = *(type(*)[count])name##_memory;                                            \
  tw_emulated_shared(name##_memory, (count) * sizeof(type), #name)
#define TW_DYNAMIC_SHARED(type, name, count, offset) \
  type *const name = (type *)tw_emulated_dynamic(offset, (count) * sizeof(type), #name)

struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(8) int2 { int x, y; };
struct __align__(16) int4 { int x, y, z, w; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
struct __align__(16) double2 { double x, y; };
struct __align__(16) longlong2 { long long x, y; };
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };

TW_FUNCTION float2 make_float2(float x, float y) { return {x, y}; }
TW_FUNCTION float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
TW_FUNCTION int2 make_int2(int x, int y) { return {x, y}; }
TW_FUNCTION int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
TW_FUNCTION uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
TW_FUNCTION uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
TW_FUNCTION double2 make_double2(double x, double y) { return {x, y}; }

extern "C" {
// The thread that runs; set whenever the emulation turns to another one.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

float expf(float);
double exp(double);
float exp2f(float);
double exp2(double);
float expm1f(float);
double expm1(double);
float logf(float);
double log(double);
float log2f(float);
double log2(double);
float log10f(float);
double log10(double);
float log1pf(float);
double log1p(double);
float sqrtf(float);
double sqrt(double);
float cbrtf(float);
double cbrt(double);
float sinf(float);
double sin(double);
float cosf(float);
double cos(double);
float tanf(float);
double tan(double);
float asinf(float);
double asin(double);
float acosf(float);
double acos(double);
float atanf(float);
double atan(double);
float sinhf(float);
double sinh(double);
float coshf(float);
double cosh(double);
float tanhf(float);
double tanh(double);
float asinhf(float);
double asinh(double);
float acoshf(float);
double acosh(double);
float atanhf(float);
double atanh(double);
float erff(float);
double erf(double);
float floorf(float);
double floor(double);
float ceilf(float);
double ceil(double);
float truncf(float);
double trunc(double);
float rintf(float);
double rint(double);
float fabsf(float);
double fabs(double);
float powf(float, float);
double pow(double, double);
float atan2f(float, float);
double atan2(double, double);
float hypotf(float, float);
double hypot(double, double);
float copysignf(float, float);
double copysign(double, double);
float fmaf(float, float, float);
double fma(double, double, double);
float fmodf(float, float);
double fmod(double, double);
float fmaxf(float, float);
double fmax(double, double);
float fminf(float, float);
double fmin(double, double);
}

#include "emulation_hooks.h"
