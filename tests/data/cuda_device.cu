// Every function of the device header in use; tests/test_cuda_device.py says what each kernel should give.

#include "device.h"

template <int n> TW_FUNCTION void reversed(const unsigned char *source, unsigned char *result) {
  __align__(16) unsigned char own[n];
  __align__(16) unsigned char other[n];
  tw_load_vector(own, source + threadIdx.x * n);
#pragma unroll
  for (int i = 0; i < n; ++i) other[i] = own[n - 1 - i];
  tw_store_vector(result + threadIdx.x * n, other);
}

extern "C" __global__ void vectors(const unsigned char *source, unsigned char *result) {
  reversed<2>(source, result);
  reversed<4>(source + 1024, result + 1024);
  reversed<8>(source + 2048, result + 2048);
  reversed<16>(source + 3072, result + 3072);
  reversed<32>(source + 4096, result + 4096);
}

extern "C" __global__ void mma_f16(const unsigned *left, const unsigned *right, float *sums) {
  tw_mma_m16n8k16_f16(sums + 4 * threadIdx.x, left + 4 * threadIdx.x, right + 2 * threadIdx.x);
}

extern "C" __global__ void mma_bf16(const unsigned *left, const unsigned *right, float *sums) {
  tw_mma_m16n8k16_bf16(sums + 4 * threadIdx.x, left + 4 * threadIdx.x, right + 2 * threadIdx.x);
}

extern "C" __global__ void mma_tf32(const unsigned *left, const unsigned *right, float *sums) {
  tw_mma_m16n8k8_tf32(sums + 4 * threadIdx.x, left + 4 * threadIdx.x, right + 2 * threadIdx.x);
}

extern "C" __global__ void mma_s8(const unsigned *left, const unsigned *right, int *sums) {
  tw_mma_m16n8k32_s8(sums + 4 * threadIdx.x, left + 4 * threadIdx.x, right + 2 * threadIdx.x);
}

extern "C" __global__ void mma_s8_of_16_steps(const unsigned *left, const unsigned *right, int *sums) {
  tw_mma_m16n8k16_s8(sums + 4 * threadIdx.x, left + 4 * threadIdx.x, right + 2 * threadIdx.x);
}

extern "C" __global__ void mma_u8(const unsigned *left, const unsigned *right, int *sums) {
  tw_mma_m16n8k32_u8(sums + 4 * threadIdx.x, left + 4 * threadIdx.x, right + 2 * threadIdx.x);
}

extern "C" __global__ void mma_u8s8(const unsigned *left, const unsigned *right, int *sums) {
  tw_mma_m16n8k32_u8s8(sums + 4 * threadIdx.x, left + 4 * threadIdx.x, right + 2 * threadIdx.x);
}

extern "C" __global__ void mma_s8u8(const unsigned *left, const unsigned *right, int *sums) {
  tw_mma_m16n8k32_s8u8(sums + 4 * threadIdx.x, left + 4 * threadIdx.x, right + 2 * threadIdx.x);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
extern "C" __global__ void mma_e4m3(const unsigned *left, const unsigned *right, float *sums) {
  tw_mma_m16n8k32_e4m3(sums + 4 * threadIdx.x, left + 4 * threadIdx.x, right + 2 * threadIdx.x);
}

extern "C" __global__ void mma_e5m2(const unsigned *left, const unsigned *right, float *sums) {
  tw_mma_m16n8k32_e5m2(sums + 4 * threadIdx.x, left + 4 * threadIdx.x, right + 2 * threadIdx.x);
}

#endif

extern "C" __global__ void bytes(const unsigned *first, const unsigned *second, const unsigned *places, unsigned *result) {
  result[threadIdx.x] = tw_permute_bytes(first[threadIdx.x], second[threadIdx.x], places[threadIdx.x]);
}

extern "C" __global__ void matrices(const unsigned short *given, unsigned *plain, unsigned *transposed, unsigned *back) {
  TW_SHARED(unsigned short, tile, 256);
  for (int i = threadIdx.x; i < 256; i += 32) tile[i] = given[i];
  __syncwarp();
  unsigned words[4], pair[2], single[1];
  tw_load_matrix_x4(words, &tile[8 * threadIdx.x]);
  for (int i = 0; i < 4; ++i) plain[4 * threadIdx.x + i] = words[i];
  tw_load_matrix_x2(pair, &tile[8 * threadIdx.x]);
  tw_load_matrix_x1(single, &tile[8 * threadIdx.x]);
  if (pair[0] != words[0] || pair[1] != words[1] || single[0] != words[0]) plain[0] = ~0u;
  tw_load_matrix_x4_transposed(words, &tile[8 * threadIdx.x]);
  for (int i = 0; i < 4; ++i) transposed[4 * threadIdx.x + i] = words[i];
  tw_load_matrix_x2_transposed(pair, &tile[8 * threadIdx.x]);
  if (pair[0] != words[0] || pair[1] != words[1]) plain[0] = ~0u;
  TW_SHARED(unsigned short, copy, 256);
  for (int i = 0; i < 4; ++i) words[i] = plain[4 * threadIdx.x + i];
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  tw_store_matrix_x4(&copy[8 * threadIdx.x], words);
#endif
  __syncwarp();
  for (int i = 0; i < 4; ++i) back[4 * threadIdx.x + i] = ((unsigned *)copy)[4 * threadIdx.x + i];
}

extern "C" __global__ void widen_f16(const tw_float16 *narrow, float *wide, long long n) {
  for (long long i = threadIdx.x; i < n; i += 64) wide[i] = tw_to_float(narrow[i]);
}

extern "C" __global__ void narrow_f16(const float *wide, tw_float16 *narrow, long long n) {
  for (long long i = threadIdx.x; i < n; i += 64) narrow[i] = tw_to_float16(wide[i]);
}

extern "C" __global__ void widen_bf16(const tw_bfloat16 *narrow, float *wide, long long n) {
  for (long long i = threadIdx.x; i < n; i += 64) wide[i] = tw_to_float(narrow[i]);
}

extern "C" __global__ void narrow_bf16(const float *wide, tw_bfloat16 *narrow, long long n) {
  for (long long i = threadIdx.x; i < n; i += 64) narrow[i] = tw_to_bfloat16(wide[i]);
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 890
extern "C" __global__ void widen_e4m3(const tw_float8_e4m3 *narrow, float *wide, long long n) {
  for (long long i = threadIdx.x; i < n; i += 64) wide[i] = tw_to_float(narrow[i]);
}

extern "C" __global__ void narrow_e4m3(const float *wide, tw_float8_e4m3 *narrow, long long n) {
  for (long long i = threadIdx.x; i < n; i += 64) narrow[i] = tw_to_float8_e4m3(wide[i]);
}

extern "C" __global__ void widen_e5m2(const tw_float8_e5m2 *narrow, float *wide, long long n) {
  for (long long i = threadIdx.x; i < n; i += 64) wide[i] = tw_to_float(narrow[i]);
}

extern "C" __global__ void narrow_e5m2(const float *wide, tw_float8_e5m2 *narrow, long long n) {
  for (long long i = threadIdx.x; i < n; i += 64) narrow[i] = tw_to_float8_e5m2(wide[i]);
}

#endif

extern "C" __global__ void narrow_doubles(const double *wide, tw_float16 *f16, tw_bfloat16 *bf16, long long n) {
  for (long long i = threadIdx.x; i < n; i += 64) {
    f16[i] = tw_to_float16(wide[i]);
    bf16[i] = tw_to_bfloat16(wide[i]);
  }
}

extern "C" __global__ void pack(const float *values, unsigned *words) {
  const int i = threadIdx.x;
  words[i] = tw_pack_float16(values[i], values[(i + 1) % 8]);
  words[8 + i] = tw_pack_bfloat16(values[i], values[(i + 1) % 8]);
  words[16 + i] = tw_to_tf32(values[i]);
}

extern "C" __global__ void shuffles(long long *results) {
  const int i = threadIdx.x;
  results[i] = __shfl_xor_sync(~0u, i, 5);
  results[64 + i] = (long long)__shfl_down_sync(~0u, (float)i, 3);
  results[128 + i] = (long long)__shfl_up_sync(~0u, (double)i, 2, 16);
  results[192 + i] = __shfl_sync(~0u, (long long)i, 7, 8);
  results[256 + i] = __ballot_sync(~0u, i % 2 == 0);
  results[320 + i] = tw_warp_add(i, 8);
  results[384 + i] = (long long)tw_warp_max((float)i, 32);
  results[448 + i] = __all_sync(~0u, i < 32) && __any_sync(~0u, i == 31) && tw_warp_and(i < 32, 32);
}

extern "C" __global__ void atomics(int *whole, float *single, tw_float16 *half, unsigned char *byte) {
  const int i = threadIdx.x;
  const float x = (float)i;
  tw_atomic_add(&whole[0], 1);
  tw_atomic_max(&whole[1], i);
  tw_atomic_min(&whole[2], -i);
  tw_atomic_or(&whole[3], i);
  tw_atomic_and(&whole[4], i);
  tw_atomic_mul(&whole[5], 3);
  tw_atomic_add(&single[0], 1.0f);
  tw_atomic_mul(&single[1], 1.0f);
  tw_atomic_max(&single[2], x);
  tw_atomic_min(&single[3], -x);
  tw_atomic_add(&half[0], tw_to_float16(1.0f));
  tw_atomic_max(&half[1], tw_to_float16(x));
  tw_atomic_min(&half[2], tw_to_float16(x));
  tw_atomic_add(&byte[1], (unsigned char)1);
  tw_atomic_max(&byte[2], (unsigned char)i);
}

extern "C" __global__ void fails(tw_failure *failure) {
  if (threadIdx.x == 4 && blockIdx.x == 0) tw_fail(failure, 7, 3, threadIdx.x, 99);
  if (blockIdx.x == 1) tw_fail(failure, 8, 4, threadIdx.x, 98);
}

extern "C" __global__ void pipeline(const float *source, float *result, long long n) {
  TW_DYNAMIC_SHARED(float, stages, 3 * 128, 0);
  const int lane = threadIdx.x;
  const int steps = (int)((n + 127) / 128);
  for (int step = 0; step < 2; ++step) {
    tw_copy_async_16_or_zero(&stages[step * 128 + 4 * lane], source + step * 128 + 4 * lane, step * 128 + 4 * lane < n);
    tw_copy_async_commit();
  }
  for (int step = 0; step < steps; ++step) {
    tw_copy_async_wait(1);
    __syncthreads();
    const int next = step + 2;
    if (next < steps)
      tw_copy_async_16_or_zero(&stages[next % 3 * 128 + 4 * lane], source + next * 128 + 4 * lane, next * 128 + 4 * lane < n);
    tw_copy_async_commit();
    for (int i = lane; i < 128; i += 32)
      if (step * 128 + i < n) result[step * 128 + i] = 2.0f * stages[step % 3 * 128 + i];
  }
  tw_copy_async_wait(0);
}

extern "C" __global__ void producer(const float *source, float *result) {
  TW_DYNAMIC_SHARED(float, tile, 32, 0);
  const int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    tile[lane] = source[lane];
    tw_barrier_arrive(1, 64);
  } else {
    tw_barrier_sync(1, 64);
    result[lane] = tile[31 - lane];
  }
}

extern "C" __global__ void last_block(float *partial, float *result, unsigned *count) {
  TW_SHARED(unsigned, last, 1);
  const float sum = tw_warp_add((float)(threadIdx.x + blockIdx.x), 32);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    last[0] = atomicAdd(count, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (last[0] != 0 && threadIdx.x == 0) {
    float total = 0.0f;
    for (unsigned i = 0; i < gridDim.x; ++i) total += partial[i];
    result[0] = total;
  }
}

template <typename T> TW_FUNCTION void integers(const T *a, const T *b, T *results, long long n) {
  for (long long i = threadIdx.x; i < n; i += 32) {
    results[0 * n + i] = tw_floordiv(a[i], b[i]);
    results[1 * n + i] = tw_mod(a[i], b[i]);
    results[2 * n + i] = tw_rem(a[i], b[i]);
    results[3 * n + i] = tw_pow(a[i], b[i]);
    results[4 * n + i] = tw_shl(a[i], b[i]);
    results[5 * n + i] = tw_shr(a[i], b[i]);
    results[6 * n + i] = tw_max(a[i], b[i]);
    results[7 * n + i] = tw_min(a[i], b[i]);
  }
}
extern "C" __global__ void integers_i8(const signed char *a, const signed char *b, signed char *results, long long n) {
  integers(a, b, results, n);
}
extern "C" __global__ void integers_i16(const short *a, const short *b, short *results, long long n) {
  integers(a, b, results, n);
}
extern "C" __global__ void integers_i32(const int *a, const int *b, int *results, long long n) {
  integers(a, b, results, n);
}
extern "C" __global__ void integers_i64(const long long *a, const long long *b, long long *results, long long n) {
  integers(a, b, results, n);
}
extern "C" __global__ void integers_u8(const unsigned char *a, const unsigned char *b, unsigned char *results, long long n) {
  integers(a, b, results, n);
}
extern "C" __global__ void integers_u16(const unsigned short *a, const unsigned short *b, unsigned short *results, long long n) {
  integers(a, b, results, n);
}
extern "C" __global__ void integers_u32(const unsigned *a, const unsigned *b, unsigned *results, long long n) {
  integers(a, b, results, n);
}
extern "C" __global__ void integers_u64(const unsigned long long *a, const unsigned long long *b, unsigned long long *results,
                                        long long n) {
  integers(a, b, results, n);
}

template <typename T> TW_FUNCTION void floats(const T *a, const T *b, T *results, long long n) {
  for (long long i = threadIdx.x; i < n; i += 32) {
    results[0 * n + i] = tw_floordiv(a[i], b[i]);
    results[1 * n + i] = tw_mod(a[i], b[i]);
    results[2 * n + i] = tw_rem(a[i], b[i]);
    results[3 * n + i] = tw_max(a[i], b[i]);
    results[4 * n + i] = tw_min(a[i], b[i]);
    results[5 * n + i] = tw_pow(a[i], b[i]);
    results[6 * n + i] = tw_atan2(a[i], b[i]);
    results[7 * n + i] = tw_copysign(a[i], b[i]);
  }
}
extern "C" __global__ void floats_f32(const float *a, const float *b, float *results, long long n) {
  floats(a, b, results, n);
}
extern "C" __global__ void floats_f64(const double *a, const double *b, double *results, long long n) {
  floats(a, b, results, n);
}

extern "C" __global__ void casts(const double *values, long long *results, long long n) {
  for (long long i = threadIdx.x; i < n; i += 32) {
    results[0 * n + i] = (long long)tw_cast_i8(values[i]);
    results[1 * n + i] = (long long)tw_cast_i16(values[i]);
    results[2 * n + i] = (long long)tw_cast_i32(values[i]);
    results[3 * n + i] = (long long)tw_cast_i64(values[i]);
    results[4 * n + i] = (long long)tw_cast_u8(values[i]);
    results[5 * n + i] = (long long)tw_cast_u16(values[i]);
    results[6 * n + i] = (long long)tw_cast_u32(values[i]);
    results[7 * n + i] = (long long)tw_cast_u64(values[i]);
  }
}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

extern "C" __global__ void bulk_copies(const float *source, float *result, long long n) {
  TW_DYNAMIC_SHARED(float, tile, 256, 0);
  TW_DYNAMIC_SHARED(unsigned long long, barriers, 2, 1024);
  const int stages = (int)(n / 128);
  if (threadIdx.x == 0) {
    tw_mbarrier_init(&barriers[0], 1);
    tw_mbarrier_init(&barriers[1], 1);
    tw_mbarrier_init_fence();
  }
  __syncthreads();
  for (int stage = 0; stage < stages; ++stage) {
    float *part = &tile[stage % 2 * 128];
    if (threadIdx.x == 0) {
      tw_mbarrier_expect(&barriers[stage % 2], 512);
      tw_bulk_load(part, source + stage * 128, 512, &barriers[stage % 2]);
    }
    tw_mbarrier_wait(&barriers[stage % 2], stage / 2 % 2);
    for (int i = threadIdx.x; i < 128; i += 64) part[i] *= 2.0f;
    tw_async_proxy_fence();
    __syncthreads();
    if (threadIdx.x == 0) {
      tw_bulk_store(result + stage * 128, part, 512);
      tw_bulk_commit();
      tw_bulk_wait_all();
    }
  }
}

#endif

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// The place of an element of a right operand in squares.
TW_FUNCTION int in_squares(int step, int column, int columns) {
  return (step / 8 * (columns / 8) + column / 8) * 64 + step % 8 * 8 + column % 8;
}

extern "C" __global__ void __launch_bounds__(128) wgmma_64(const tw_float16 *left, const tw_float16 *right, float *result) {
  TW_DYNAMIC_SHARED(tw_float16, a, 64 * 64, 0);
  TW_DYNAMIC_SHARED(tw_float16, b, 64 * 64, 8192);
  for (int i = threadIdx.x; i < 64 * 64; i += 128) {
    a[tw_swizzled(i / 64, i % 64, 8)] = left[i];
    b[in_squares(i % 64, i / 64, 64)] = right[i];
  }
  tw_async_proxy_fence();
  __syncthreads();
  float sums[32];
  tw_wgmma_fence();
  for (int step = 0; step < 64; step += 16)
    tw_wgmma_m64n64k16_f16(sums, tw_wgmma_left(&a[step]), tw_wgmma_right(&b[64 * step], 1024), step > 0);
  tw_wgmma_commit();
  tw_wgmma_wait(0);
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < 32; ++i) result[(row + i / 2 % 2 * 8) * 64 + column + i / 4 * 8 + i % 2] = sums[i];
}

extern "C" __global__ void __launch_bounds__(128) wgmma_128(const tw_bfloat16 *left, const tw_bfloat16 *right, float *result) {
  TW_DYNAMIC_SHARED(tw_bfloat16, a, 64 * 64, 0);
  TW_DYNAMIC_SHARED(tw_bfloat16, b, 128 * 64, 8192);
  for (int i = threadIdx.x; i < 128 * 64; i += 128) {
    if (i < 64 * 64) a[tw_swizzled(i / 64, i % 64, 8)] = left[i];
    b[in_squares(i % 64, i / 64, 128)] = right[i];
  }
  tw_async_proxy_fence();
  __syncthreads();
  float sums[64];
  tw_wgmma_fence();
  for (int step = 0; step < 64; step += 16) {
    tw_wgmma_m64n128k16_bf16(sums, tw_wgmma_left(&a[step]), tw_wgmma_right(&b[128 * step], 2048), step > 0);
    tw_wgmma_commit();
    tw_wgmma_wait(1);
  }
  tw_wgmma_wait(0);
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < 64; ++i) result[(row + i / 2 % 2 * 8) * 128 + column + i / 4 * 8 + i % 2] = sums[i];
}

extern "C" __global__ void __launch_bounds__(128) wgmma_256(const tw_bfloat16 *left, const tw_bfloat16 *right, float *result) {
  TW_DYNAMIC_SHARED(tw_bfloat16, a, 64 * 64, 0);
  TW_DYNAMIC_SHARED(tw_bfloat16, b, 256 * 64, 8192);
  for (int i = threadIdx.x; i < 256 * 64; i += 128) {
    if (i < 64 * 64) a[tw_swizzled(i / 64, i % 64, 8)] = left[i];
    b[in_squares(i % 64, i / 64, 256)] = right[i];
  }
  tw_async_proxy_fence();
  __syncthreads();
  float sums[128];
  tw_wgmma_fence();
  tw_wgmma_m64n256k16_bf16(sums, tw_wgmma_left(a), tw_wgmma_right(b, 4096), 0);
  tw_wgmma_commit();
  tw_wgmma_wait(0);
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
#pragma unroll
  for (int i = 0; i < 128; ++i) result[(row + i / 2 % 2 * 8) * 256 + column + i / 4 * 8 + i % 2] = sums[i];
}


// 128 steps of bytes, which lie side by side on both sides.
#define WGMMA_BYTES(format, sum, columns) \
  TW_DYNAMIC_SHARED(unsigned char, a, 64 * 128, 0); \
  TW_DYNAMIC_SHARED(unsigned char, b, columns * 128, 8192); \
  for (int i = threadIdx.x; i < columns * 128; i += 128) { \
    const int row = i / 128, step = i % 128; \
    if (row < 64) a[tw_swizzled(row, step, 16)] = (unsigned char)left[i]; \
    b[(step / 16 * columns + row) * 16 + step % 16] = (unsigned char)right[i]; \
  } \
  tw_async_proxy_fence(); \
  __syncthreads(); \
  sum sums[columns / 2]; \
  tw_wgmma_fence(); \
  for (int step = 0; step < 128; step += 32) \
    tw_wgmma_m64n##columns##k32_##format(sums, tw_wgmma_left(&a[step]), tw_wgmma_right(&b[columns * step], columns * 16), step > 0); \
  tw_wgmma_commit(); \
  tw_wgmma_wait(0); \
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2; \
  _Pragma("unroll") for (int i = 0; i < columns / 2; ++i) \
    result[(row + i / 2 % 2 * 8) * columns + column + i / 4 * 8 + i % 2] = sums[i];

extern "C" __global__ void __launch_bounds__(128) wgmma_s8(const signed char *left, const signed char *right, int *result) {
  WGMMA_BYTES(s8, int, 64)
}

extern "C" __global__ void __launch_bounds__(128) wgmma_u8s8(const unsigned char *left, const signed char *right, int *result) {
  WGMMA_BYTES(u8s8, int, 128)
}

extern "C" __global__ void __launch_bounds__(128) wgmma_e4m3(const unsigned char *left, const unsigned char *right, float *result) {
  WGMMA_BYTES(e4m3, float, 256)
}

extern "C" __global__ void __launch_bounds__(128) wgmma_e5m2(const unsigned char *left, const unsigned char *right, float *result) {
  WGMMA_BYTES(e5m2, float, 64)
}

// 32 steps, which lie side by side on both sides.
#define WGMMA_TF32(columns) \
  TW_DYNAMIC_SHARED(float, a, 64 * 32, 0); \
  TW_DYNAMIC_SHARED(float, b, columns * 32, 8192); \
  for (int i = threadIdx.x; i < columns * 32; i += 128) { \
    const int row = i / 32, step = i % 32; \
    if (row < 64) a[tw_swizzled(row, step, 4)] = left[i]; \
    b[(step / 4 * columns + row) * 4 + step % 4] = right[i]; \
  } \
  tw_async_proxy_fence(); \
  __syncthreads(); \
  const int row = threadIdx.x / 32 * 16, column = threadIdx.x % 4 * 2; \
  unsigned words[4][4]; \
  _Pragma("unroll") for (int step = 0; step < 32; step += 8) \
    tw_load_matrix_x4(words[step / 8], &a[tw_swizzled(row + threadIdx.x % 16, step + threadIdx.x % 32 / 16 * 4, 4)]); \
  float sums[columns / 2]; \
  tw_wgmma_fence(); \
  _Pragma("unroll") for (int step = 0; step < 32; step += 8) \
    tw_wgmma_m64n##columns##k8_tf32(sums, words[step / 8], tw_wgmma_right(&b[columns * step], columns * 16), step > 0); \
  tw_wgmma_commit(); \
  if (changed) words[0][0] = 0; \
  tw_wgmma_wait(0); \
  _Pragma("unroll") for (int i = 0; i < columns / 2; ++i) \
    result[(row + threadIdx.x % 32 / 4 + i / 2 % 2 * 8) * columns + column + i / 4 * 8 + i % 2] = sums[i];

extern "C" __global__ void __launch_bounds__(128) wgmma_tf32_64(const float *left, const float *right, float *result, long long changed) {
  WGMMA_TF32(64)
}

extern "C" __global__ void __launch_bounds__(128) wgmma_tf32_128(const float *left, const float *right, float *result, long long changed) {
  WGMMA_TF32(128)
}

extern "C" __global__ void __launch_bounds__(128) wgmma_tf32_256(const float *left, const float *right, float *result, long long changed) {
  WGMMA_TF32(256)
}

#endif
