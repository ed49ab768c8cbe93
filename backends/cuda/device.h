// The device header: everything that a kernel of Tilewright calls beyond CUDA's own language.
//
// This and what it includes is the one place with inline PTX. Each function says what it does for a thread, a warp or a block, and in which
// layout of the PTX ISA its registers lie. A second body of all of this for the host (host_device.h) lets the very same kernels
// run without a GPU; its results are the same bits, except where hardware does not say how it rounds: the sums inside of a
// matrix instruction (exact there, rounded once) and the last bits of the math functions of the C library.
//
// Nothing of CUDA is included, so that NVRTC needs this folder alone. Compile with --fmad=false: a fused multiply-add
// is written `tw_fma`.

#pragma once

#if !defined(__CUDACC__)
#include "host_language.h"
#else
#define TW_FUNCTION static __device__ __forceinline__
#define TW_INFINITY_F32 (__int_as_float(0x7f800000))
#define TW_INFINITY_F64 (__longlong_as_double(0x7ff0000000000000LL))
// An array of the block's shared memory, 48 KiB in all at most.
#define TW_SHARED(type, name, count) __shared__ __align__(128) type name[count]
// An array at an offset in bytes of the shared memory that the launch asks for.
#define TW_DYNAMIC_SHARED(type, name, count, offset) type *const name = (type *)(tw_dynamic_shared() + (offset))
#define TW_MEMBER __device__ __forceinline__
#endif

// Values of 16 and 8 bits as they lie in memory; nothing computes with them.
struct __align__(2) tw_float16 { unsigned short bits; };
struct __align__(2) tw_bfloat16 { unsigned short bits; };
struct tw_float8_e4m3 { unsigned char bits; };
struct tw_float8_e5m2 { unsigned char bits; };

// The first failure of a run: code and site are the program's, found and expected what its message shows.
struct tw_failure { int code; int site; long long found; long long expected; };

#if !defined(__CUDACC__)

#include "host_device.h"

#else

TW_FUNCTION unsigned char *tw_dynamic_shared() {
  extern __shared__ __align__(1024) unsigned char tw_dynamic_memory[];
  return tw_dynamic_memory;
}

// The address within shared memory, as instructions on it want it.
TW_FUNCTION unsigned tw_shared_address(const void *shared) { return (unsigned)__cvta_generic_to_shared(shared); }

// --- bits and conversions; to narrower floats rounded once, to nearest even ---

TW_FUNCTION int tw_bits_of(float x) { return __float_as_int(x); }
TW_FUNCTION long long tw_bits_of(double x) { return __double_as_longlong(x); }
TW_FUNCTION float tw_float_from_bits(int bits) { return __int_as_float(bits); }
TW_FUNCTION double tw_double_from_bits(long long bits) { return __longlong_as_double(bits); }

TW_FUNCTION float tw_to_float(tw_float16 x) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
}
TW_FUNCTION float tw_to_float(tw_bfloat16 x) { return __int_as_float((int)x.bits << 16); }
TW_FUNCTION tw_float16 tw_to_float16(float x) {
  tw_float16 narrow;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
  return narrow;
}
TW_FUNCTION tw_float16 tw_to_float16(double x) {
  tw_float16 narrow;
  asm("cvt.rn.f16.f64 %0, %1;" : "=h"(narrow.bits) : "d"(x));
  return narrow;
}
TW_FUNCTION tw_bfloat16 tw_to_bfloat16(float x) {
  tw_bfloat16 narrow;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(narrow.bits) : "f"(x));
  return narrow;
}

// Two values in a word, the first in the lower half.
TW_FUNCTION unsigned tw_pack_float16(float low, float high) {
  unsigned word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
TW_FUNCTION unsigned tw_pack_bfloat16(float low, float high) {
  unsigned word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

// The word of a matrix instruction for tf32: 10 bits of fraction, rounded to nearest, ties away from zero. Units take no notice of the 13
// bits below, which hold anything here. (cvt.rna.tf32.f32 takes as many instructions, and makes infinity of a NaN with no other bits.)
TW_FUNCTION unsigned tw_to_tf32(float x) {
  return fabsf(x) < TW_INFINITY_F32 ? (unsigned)__float_as_int(x) + 0x1000u : (unsigned)__float_as_int(x + x);
}

#if __CUDA_ARCH__ >= 890 || !defined(__CUDA_ARCH__)
// 8-bit floats go in pairs; what is too large becomes the largest number, NaN stays NaN.
TW_FUNCTION tw_float8_e4m3 tw_to_float8_e4m3(float x) {
  unsigned short pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  tw_float8_e4m3 narrow;
  narrow.bits = (unsigned char)pair;
  return narrow;
}
TW_FUNCTION tw_float8_e5m2 tw_to_float8_e5m2(float x) {
  unsigned short pair;
  asm("cvt.rn.satfinite.e5m2x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  tw_float8_e5m2 narrow;
  narrow.bits = (unsigned char)pair;
  return narrow;
}
TW_FUNCTION float tw_to_float(tw_float8_e4m3 x) {
  unsigned pair;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(pair) : "h"((unsigned short)x.bits));
  tw_float16 half;
  half.bits = (unsigned short)pair;
  return tw_to_float(half);
}
#endif
// The upper half of a float16 is an e5m2.
TW_FUNCTION float tw_to_float(tw_float8_e5m2 x) {
  tw_float16 half;
  half.bits = (unsigned short)(x.bits << 8);
  return tw_to_float(half);
}

// --- memory ---

// Neighbouring elements of global memory to and from an array of the thread's own, which is aligned to 16: of 2, 4, 8 or a multiple of 16
// bytes in all, 16 at a time. They begin at a multiple of as many bytes as are moved at a time.
template <int bytes> TW_FUNCTION void tw_move(void *to, const void *from) {
  if (bytes % 16 == 0) {
    #pragma unroll
    for (int i = 0; i < bytes / 16; ++i) ((uint4 *)to)[i] = ((const uint4 *)from)[i];
  } else if (bytes == 8) {
    *(uint2 *)to = *(const uint2 *)from;
  } else if (bytes == 4) {
    *(unsigned *)to = *(const unsigned *)from;
  } else {
    *(unsigned short *)to = *(const unsigned short *)from;
  }
}
template <typename T, int n> TW_FUNCTION void tw_load_vector(T (&own)[n], const T *place) { tw_move<n * sizeof(T)>(own, place); }
template <typename T, int n> TW_FUNCTION void tw_store_vector(T *place, const T (&own)[n]) { tw_move<n * sizeof(T)>(place, own); }

TW_FUNCTION void tw_prefetch(const void *place) {
  asm volatile("prefetch.global.L2 [%0];" :: "l"(__cvta_generic_to_global(place)));
}

// --- barriers of some of the block's threads: `threads` is a multiple of 32, numbers go from 1 to 15 ---

TW_FUNCTION void tw_barrier_sync(int number, int threads) {
  asm volatile("bar.sync %0, %1;" :: "r"(number), "r"(threads) : "memory");
}
TW_FUNCTION void tw_barrier_arrive(int number, int threads) {
  asm volatile("bar.arrive %0, %1;" :: "r"(number), "r"(threads) : "memory");
}

// --- asynchronous copies to shared memory (sm_80), in groups that a thread opens and waits for ---
//
// Both places are aligned to what is copied.

TW_FUNCTION void tw_copy_async_16(void *shared, const void *global) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;"
               :: "r"(tw_shared_address(shared)), "l"(__cvta_generic_to_global(global)) : "memory");
}
TW_FUNCTION void tw_copy_async_8(void *shared, const void *global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;"
               :: "r"(tw_shared_address(shared)), "l"(__cvta_generic_to_global(global)) : "memory");
}
TW_FUNCTION void tw_copy_async_4(void *shared, const void *global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;"
               :: "r"(tw_shared_address(shared)), "l"(__cvta_generic_to_global(global)) : "memory");
}
// Zeros where not `valid`; then nothing is read.
TW_FUNCTION void tw_copy_async_16_or_zero(void *shared, const void *global, bool valid) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;"
               :: "r"(tw_shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0) : "memory");
}
TW_FUNCTION void tw_copy_async_8_or_zero(void *shared, const void *global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;"
               :: "r"(tw_shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 8 : 0) : "memory");
}
TW_FUNCTION void tw_copy_async_4_or_zero(void *shared, const void *global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
               :: "r"(tw_shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(valid ? 4 : 0) : "memory");
}
// Ends a group; a wait leaves at most `open` of the latest ones under way (a constant up to 7).
TW_FUNCTION void tw_copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
TW_FUNCTION void tw_copy_async_wait(int open) {
  switch (open) {
    case 0: asm volatile("cp.async.wait_group 0;" ::: "memory"); break;
    case 1: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
    case 2: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
    case 3: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
    case 4: asm volatile("cp.async.wait_group 4;" ::: "memory"); break;
    case 5: asm volatile("cp.async.wait_group 5;" ::: "memory"); break;
    case 6: asm volatile("cp.async.wait_group 6;" ::: "memory"); break;
    default: asm volatile("cp.async.wait_group 7;" ::: "memory");
  }
}

// --- matrices of 8 rows of 16 bytes in shared memory, to and from the registers of a warp ---
//
// Lane l gives the place of row l % 8 of matrix l / 8, aligned to 16 bytes (lanes beyond the matrices' rows are not asked). Register m
// of lane l holds bytes 4 * (l % 4) .. + 3 of row l / 4 of matrix m; transposed (elements of 16 bits) it holds elements
// (2 * (l % 4), l / 4) and (2 * (l % 4) + 1, l / 4).

TW_FUNCTION void tw_load_matrix_x4(unsigned words[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(tw_shared_address(row)) : "memory");
}
TW_FUNCTION void tw_load_matrix_x2(unsigned words[2], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(words[0]), "=r"(words[1]) : "r"(tw_shared_address(row)) : "memory");
}
TW_FUNCTION void tw_load_matrix_x1(unsigned words[1], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(words[0]) : "r"(tw_shared_address(row)) : "memory");
}
TW_FUNCTION void tw_load_matrix_x4_transposed(unsigned words[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3]) : "r"(tw_shared_address(row)) : "memory");
}
// The bytes at four places, 0 to 7 in four bits each, of the eight of two words, the first one's before the second one's.
TW_FUNCTION unsigned tw_permute_bytes(unsigned first, unsigned second, unsigned places) {
  unsigned word;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(word) : "r"(first), "r"(second), "r"(places));
  return word;
}
TW_FUNCTION void tw_load_matrix_x2_transposed(unsigned words[2], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(words[0]), "=r"(words[1]) : "r"(tw_shared_address(row)) : "memory");
}
#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)
TW_FUNCTION void tw_store_matrix_x4(void *row, const unsigned words[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};"
               :: "r"(tw_shared_address(row)), "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]) : "memory");
}
#endif

// --- matrix instructions of a warp: sums += left * right, 16 x 8 sums ---
//
// With g = lane / 4 and t = lane % 4: sums are (g, 2t), (g, 2t + 1), (g + 8, 2t), (g + 8, 2t + 1). A word holds e neighbouring steps of
// the contraction (e = 2 for 16 bits, 4 for 8 bits, 1 for tf32), the first one lowest. left: words of row g, g + 8, g, g + 8, where
// the first two hold steps e * t .. and the last two those 4 * e further. right: steps e * t .., and 4 * e further, of column g.

TW_FUNCTION void tw_mma_m16n8k16_f16(float sums[4], const unsigned left[4], const unsigned right[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}
TW_FUNCTION void tw_mma_m16n8k16_bf16(float sums[4], const unsigned left[4], const unsigned right[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}
TW_FUNCTION void tw_mma_m16n8k8_tf32(float sums[4], const unsigned left[4], const unsigned right[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}
TW_FUNCTION void tw_mma_m16n8k32_s8(int sums[4], const unsigned left[4], const unsigned right[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}
// Of 16 steps: the first two words of the left operand, and the first one of the right.
TW_FUNCTION void tw_mma_m16n8k16_s8(int sums[4], const unsigned left[2], const unsigned right[1]) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3]) : "r"(left[0]), "r"(left[1]), "r"(right[0]));
}
TW_FUNCTION void tw_mma_m16n8k32_u8(int sums[4], const unsigned left[4], const unsigned right[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}
TW_FUNCTION void tw_mma_m16n8k32_u8s8(int sums[4], const unsigned left[4], const unsigned right[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}
TW_FUNCTION void tw_mma_m16n8k32_s8u8(int sums[4], const unsigned left[4], const unsigned right[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}
#if __CUDA_ARCH__ >= 890 || !defined(__CUDA_ARCH__)
TW_FUNCTION void tw_mma_m16n8k32_e4m3(float sums[4], const unsigned left[4], const unsigned right[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}
TW_FUNCTION void tw_mma_m16n8k32_e5m2(float sums[4], const unsigned left[4], const unsigned right[2]) {
  asm("mma.sync.aligned.m16n8k32.row.col.f32.e5m2.e5m2.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right[0]), "r"(right[1]));
}
#endif

#include "device_hopper.h"

template <bool wide> struct tw_word_of { typedef unsigned type; };
template <> struct tw_word_of<true> { typedef unsigned long long type; };

// --- atomics without an instruction: compare and swap, of the word around narrow values ---

template <typename T, typename Combine> TW_FUNCTION void tw_atomic_combine(T *place, T value, Combine) {
  typedef typename tw_word_of<(sizeof(T) > 4)>::type Word;
  const unsigned long long address = (unsigned long long)place, within = address % sizeof(Word);
  Word *const word = (Word *)(address - within);
  Word seen = atomicCAS(word, (Word)0, (Word)0), before;
  do {
    before = seen;
    Word after = before;
    T *const part = (T *)((char *)&after + within);
    *part = Combine::of(*part, value);
    seen = atomicCAS(word, before, after);
  } while (seen != before);
}

#endif  // __CUDACC__

#include "device_scalars.h"

// --- what both sides share: rounding, warps, atomics, failures ---

// The element of a matrix that lies as products of four warps want it on the left, in rows of 128 bytes with so many elements in 16 of them.
TW_FUNCTION int tw_swizzled(int row, int column, int piece) {
  return (row * 8 + ((column / piece ^ row) & 7)) * piece + column % piece;
}

// A float that holds the nearest value of a 16-bit type, and the bits of such a value.
TW_FUNCTION float tw_round_float16(float x) { return tw_to_float(tw_to_float16(x)); }
TW_FUNCTION float tw_round_float16(double x) { return tw_to_float(tw_to_float16(x)); }
TW_FUNCTION float tw_round_bfloat16(float x) { return tw_to_float(tw_to_bfloat16(x)); }
// A double becomes a float first, as in NumPy's bfloat16: rounded twice.
TW_FUNCTION tw_bfloat16 tw_to_bfloat16(double x) { return tw_to_bfloat16((float)x); }
TW_FUNCTION float tw_round_bfloat16(double x) { return tw_to_float(tw_to_bfloat16(x)); }
TW_FUNCTION short tw_bits_of_float16(float x) { return (short)tw_to_float16(x).bits; }
TW_FUNCTION short tw_bits_of_bfloat16(float x) { return (short)tw_to_bfloat16(x).bits; }
TW_FUNCTION float tw_float16_from_bits(short bits) {
  tw_float16 x;
  x.bits = (unsigned short)bits;
  return tw_to_float(x);
}
TW_FUNCTION float tw_bfloat16_from_bits(short bits) { return tw_float_from_bits((int)(unsigned short)bits << 16); }

// All 32 lanes take part; the combinations are over groups of `width` neighbouring lanes, the result is in all of them.
template <typename T> TW_FUNCTION T tw_shuffle_xor(T value, int distance) { return (T)__shfl_xor_sync(~0u, value, distance); }
template <typename T> TW_FUNCTION T tw_shuffle(T value, int lane) { return (T)__shfl_sync(~0u, value, lane); }

struct tw_combine_add {
  template <typename T> TW_MEMBER static T of(T a, T b) { return (T)(a + b); }
  TW_MEMBER static tw_float16 of(tw_float16 a, tw_float16 b) { return tw_to_float16(tw_to_float(a) + tw_to_float(b)); }
  TW_MEMBER static tw_bfloat16 of(tw_bfloat16 a, tw_bfloat16 b) { return tw_to_bfloat16(tw_to_float(a) + tw_to_float(b)); }
};
struct tw_combine_mul {
  template <typename T> TW_MEMBER static T of(T a, T b) { return (T)(a * b); }
  TW_MEMBER static unsigned short of(unsigned short a, unsigned short b) { return (unsigned short)((unsigned)a * b); }
  TW_MEMBER static tw_float16 of(tw_float16 a, tw_float16 b) { return tw_to_float16(tw_to_float(a) * tw_to_float(b)); }
  TW_MEMBER static tw_bfloat16 of(tw_bfloat16 a, tw_bfloat16 b) { return tw_to_bfloat16(tw_to_float(a) * tw_to_float(b)); }
};
struct tw_combine_max {
  template <typename T> TW_MEMBER static T of(T a, T b) { return tw_max(a, b); }
  TW_MEMBER static tw_float16 of(tw_float16 a, tw_float16 b) { return tw_to_float16(tw_max(tw_to_float(a), tw_to_float(b))); }
  TW_MEMBER static tw_bfloat16 of(tw_bfloat16 a, tw_bfloat16 b) { return tw_to_bfloat16(tw_max(tw_to_float(a), tw_to_float(b))); }
};
struct tw_combine_min {
  template <typename T> TW_MEMBER static T of(T a, T b) { return tw_min(a, b); }
  TW_MEMBER static tw_float16 of(tw_float16 a, tw_float16 b) { return tw_to_float16(tw_min(tw_to_float(a), tw_to_float(b))); }
  TW_MEMBER static tw_bfloat16 of(tw_bfloat16 a, tw_bfloat16 b) { return tw_to_bfloat16(tw_min(tw_to_float(a), tw_to_float(b))); }
};
struct tw_combine_and {
  template <typename T> TW_MEMBER static T of(T a, T b) { return (T)(a & b); }
};
struct tw_combine_or {
  template <typename T> TW_MEMBER static T of(T a, T b) { return (T)(a | b); }
};

template <typename T, typename Combine> TW_FUNCTION T tw_warp_combine(T value, int width, Combine) {
  for (int distance = width / 2; distance > 0; distance /= 2) value = Combine::of(value, tw_shuffle_xor(value, distance));
  return value;
}
template <typename T> TW_FUNCTION T tw_warp_add(T value, int width) { return tw_warp_combine(value, width, tw_combine_add()); }
template <typename T> TW_FUNCTION T tw_warp_mul(T value, int width) { return tw_warp_combine(value, width, tw_combine_mul()); }
template <typename T> TW_FUNCTION T tw_warp_max(T value, int width) { return tw_warp_combine(value, width, tw_combine_max()); }
template <typename T> TW_FUNCTION T tw_warp_min(T value, int width) { return tw_warp_combine(value, width, tw_combine_min()); }
template <typename T> TW_FUNCTION T tw_warp_and(T value, int width) { return tw_warp_combine(value, width, tw_combine_and()); }
template <typename T> TW_FUNCTION T tw_warp_or(T value, int width) { return tw_warp_combine(value, width, tw_combine_or()); }

// The same over all `threads` of a block, whole warps: each warp's result goes through shared memory.
template <typename T, typename Combine> TW_FUNCTION T tw_block_combine(T value, int threads, Combine combine) {
  TW_SHARED(T, parts, 32);
  value = tw_warp_combine(value, 32, combine);
  __syncthreads();  // the parts of a call before this one have been read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  T total = parts[0];
  for (int warp = 1; warp < threads / 32; ++warp) total = Combine::of(total, parts[warp]);
  return total;
}
template <typename T> TW_FUNCTION T tw_block_add(T value, int threads) { return tw_block_combine(value, threads, tw_combine_add()); }
template <typename T> TW_FUNCTION T tw_block_mul(T value, int threads) { return tw_block_combine(value, threads, tw_combine_mul()); }
template <typename T> TW_FUNCTION T tw_block_max(T value, int threads) { return tw_block_combine(value, threads, tw_combine_max()); }
template <typename T> TW_FUNCTION T tw_block_min(T value, int threads) { return tw_block_combine(value, threads, tw_combine_min()); }
template <typename T> TW_FUNCTION T tw_block_and(T value, int threads) { return tw_block_combine(value, threads, tw_combine_and()); }
template <typename T> TW_FUNCTION T tw_block_or(T value, int threads) { return tw_block_combine(value, threads, tw_combine_or()); }

// Stores that many threads may make to one place, in any order; of every type, with an instruction where there is one.
template <typename T> TW_FUNCTION void tw_atomic_add(T *place, T value) { tw_atomic_combine(place, value, tw_combine_add()); }
template <typename T> TW_FUNCTION void tw_atomic_mul(T *place, T value) { tw_atomic_combine(place, value, tw_combine_mul()); }
template <typename T> TW_FUNCTION void tw_atomic_max(T *place, T value) { tw_atomic_combine(place, value, tw_combine_max()); }
template <typename T> TW_FUNCTION void tw_atomic_min(T *place, T value) { tw_atomic_combine(place, value, tw_combine_min()); }
template <typename T> TW_FUNCTION void tw_atomic_and(T *place, T value) { tw_atomic_combine(place, value, tw_combine_and()); }
template <typename T> TW_FUNCTION void tw_atomic_or(T *place, T value) { tw_atomic_combine(place, value, tw_combine_or()); }
TW_FUNCTION void tw_atomic_add(int *place, int value) { atomicAdd(place, value); }
TW_FUNCTION void tw_atomic_add(unsigned *place, unsigned value) { atomicAdd(place, value); }
TW_FUNCTION void tw_atomic_add(unsigned long long *place, unsigned long long value) { atomicAdd(place, value); }
TW_FUNCTION void tw_atomic_add(long long *place, long long value) {
  atomicAdd((unsigned long long *)place, (unsigned long long)value);
}
TW_FUNCTION void tw_atomic_add(float *place, float value) { atomicAdd(place, value); }
TW_FUNCTION void tw_atomic_add(double *place, double value) { atomicAdd(place, value); }
TW_FUNCTION void tw_atomic_max(int *place, int value) { atomicMax(place, value); }
TW_FUNCTION void tw_atomic_max(unsigned *place, unsigned value) { atomicMax(place, value); }
TW_FUNCTION void tw_atomic_min(int *place, int value) { atomicMin(place, value); }
TW_FUNCTION void tw_atomic_min(unsigned *place, unsigned value) { atomicMin(place, value); }

// The first one to fail writes down why, in memory that the host reads while kernels run.
TW_FUNCTION void tw_fail(tw_failure *failure, int code, int site, long long found, long long expected) {
  if (atomicCAS_system(&failure->code, 0, code) != 0) return;
  failure->site = site;
  failure->found = found;
  failure->expected = expected;
  __threadfence_system();
}
