// The host bodies of the device header: what is an instruction there is a call of the emulation here.
//
// Included by device.h in the place of its PTX; the comments there say what each function does and which lane holds what.
// Results are the same bits as a device's, but for what device.h lists.

#pragma once

// --- the language's own functions ---

TW_HOST void __syncthreads() { tw_emulated_barrier(0, 0, 1); }
TW_HOST void __syncwarp(unsigned mask = ~0u) { tw_emulated_warp(TW_SYNC_WARP, mask, nullptr); }
TW_HOST void __threadfence() { tw_emulated_fence(); }
TW_HOST void __threadfence_system() { tw_emulated_fence(); }
TW_HOST void __threadfence_block() { tw_emulated_fence(); }
TW_HOST int tw_host_lane() { return int((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32); }

template <typename T> TW_HOST T tw_host_exchange(unsigned mask, T value, int source) {
  tw_exchange_arguments arguments = {0, source};
  __builtin_memcpy(&arguments.value, &value, sizeof(T));
  tw_emulated_warp(TW_EXCHANGE, mask, &arguments);
  __builtin_memcpy(&value, &arguments.value, sizeof(T));
  return value;
}
template <typename T> TW_HOST T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int first = tw_host_lane() & -width;
  return tw_host_exchange(mask, value, first + (source & (width - 1)));
}
template <typename T> TW_HOST T __shfl_xor_sync(unsigned mask, T value, int distance, int width = 32) {
  const int lane = tw_host_lane(), source = lane ^ distance;
  return tw_host_exchange(mask, value, source < (lane & -width) + width ? source : lane);
}
template <typename T> TW_HOST T __shfl_down_sync(unsigned mask, T value, int distance, int width = 32) {
  const int lane = tw_host_lane(), source = lane + distance;
  return tw_host_exchange(mask, value, source < (lane & -width) + width ? source : lane);
}
template <typename T> TW_HOST T __shfl_up_sync(unsigned mask, T value, int distance, int width = 32) {
  const int lane = tw_host_lane(), source = lane - distance;
  return tw_host_exchange(mask, value, source >= (lane & -width) ? source : lane);
}
TW_HOST unsigned __ballot_sync(unsigned mask, int value) {
  tw_ballot_arguments arguments = {value != 0, 0};
  tw_emulated_warp(TW_BALLOT, mask, &arguments);
  return arguments.result;
}
TW_HOST int __any_sync(unsigned mask, int value) { return __ballot_sync(mask, value) != 0; }
TW_HOST int __all_sync(unsigned mask, int value) { return __ballot_sync(mask, !value) == 0; }

template <typename T> struct tw_host_same { typedef T type; };

template <typename T> TW_HOST T atomicAdd(T *place, typename tw_host_same<T>::type value) {
  tw_emulated_touch(place, sizeof(T), TW_ATOMIC);
  const T old = *place;
  *place = T(old + value);
  return old;
}
template <typename T> TW_HOST T atomicMax(T *place, typename tw_host_same<T>::type value) {
  tw_emulated_touch(place, sizeof(T), TW_ATOMIC);
  const T old = *place;
  *place = old < value ? value : old;
  return old;
}
template <typename T> TW_HOST T atomicMin(T *place, typename tw_host_same<T>::type value) {
  tw_emulated_touch(place, sizeof(T), TW_ATOMIC);
  const T old = *place;
  *place = value < old ? value : old;
  return old;
}
template <typename T> TW_HOST T atomicExch(T *place, typename tw_host_same<T>::type value) {
  tw_emulated_touch(place, sizeof(T), TW_ATOMIC);
  const T old = *place;
  *place = value;
  return old;
}
template <typename T> TW_HOST T atomicCAS(T *place, typename tw_host_same<T>::type expected, typename tw_host_same<T>::type value) {
  tw_emulated_touch(place, sizeof(T), TW_ATOMIC);
  const T old = *place;
  if (old == expected) *place = value;
  return old;
}
template <typename T> TW_HOST T atomicCAS_system(T *place, typename tw_host_same<T>::type expected, typename tw_host_same<T>::type value) {
  return atomicCAS(place, expected, value);
}
template <typename T, typename Combine> TW_HOST void tw_atomic_combine(T *place, T value, Combine) {
  tw_emulated_touch(place, sizeof(T), TW_ATOMIC);
  *place = Combine::of(*place, value);
}

// --- bits and conversions ---

TW_HOST int tw_bits_of(float x) {
  int bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}
TW_HOST long long tw_bits_of(double x) {
  long long bits;
  __builtin_memcpy(&bits, &x, 8);
  return bits;
}
TW_HOST float tw_float_from_bits(int bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}
TW_HOST double tw_double_from_bits(long long bits) {
  double x;
  __builtin_memcpy(&x, &bits, 8);
  return x;
}

// The bits without a sign of |x| in a format with so many bits of fraction and that exponent of its least normal number, rounded to
// nearest even; what lies above the greatest finite number overflows into the bits after it. x is finite.
TW_HOST unsigned long long tw_host_narrow(double x, int fraction, int least_exponent) {
  const unsigned long long bits = (unsigned long long)tw_bits_of(x) & ~(1ull << 63);
  const int exponent = bits >> 52 ? int(bits >> 52) - 1023 : -1022;
  unsigned long long significand = (bits & ((1ull << 52) - 1)) | (bits >> 52 ? 1ull << 52 : 0);
  const int below = exponent < least_exponent ? least_exponent - exponent : 0;
  const int drop = 52 - fraction + below;
  if (drop > 62) return 0;
  const unsigned long long half = 1ull << (drop - 1), rest = significand & ((1ull << drop) - 1);
  significand >>= drop;
  if (rest > half || (rest == half && (significand & 1))) ++significand;
  // a carry into the next exponent needs no case of its own: the bit above the fraction counts exponents
  const unsigned long long biased = below ? 0 : (unsigned long long)(exponent - least_exponent);
  return (biased << fraction) + significand;
}
TW_HOST unsigned short tw_host_bits_of_float16(double x) {
  const unsigned sign = tw_bits_of(x) < 0 ? 0x8000u : 0u;
  unsigned long long bits = 0x7c00;
  if (x != x) return 0x7fff;
  if (fabs(x) != TW_INFINITY_F64) bits = tw_host_narrow(x, 10, -14);
  return (unsigned short)(sign | (bits > 0x7c00 ? 0x7c00 : bits));
}
TW_HOST unsigned short tw_host_bits_of_bfloat16(float x) {
  const unsigned bits = (unsigned)tw_bits_of(x);
  if (x != x) return 0x7fff;
  return (unsigned short)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
TW_FUNCTION tw_float16 tw_to_float16(double x) { return {tw_host_bits_of_float16(x)}; }
TW_FUNCTION tw_float16 tw_to_float16(float x) { return {tw_host_bits_of_float16((double)x)}; }
TW_FUNCTION tw_bfloat16 tw_to_bfloat16(float x) { return {tw_host_bits_of_bfloat16(x)}; }
TW_HOST float tw_to_float(tw_bfloat16 x) { return tw_float_from_bits((int)((unsigned)x.bits << 16)); }
// A number of a format with that fraction and bias; `bits` without sign.
TW_HOST float tw_host_widen(unsigned bits, int fraction, int bias, bool negative) {
  const int exponent = int(bits >> fraction);
  const double significand = (bits & ((1u << fraction) - 1)) + (exponent ? (1u << fraction) : 0u);
  const double scale = tw_double_from_bits((long long)(1023 + (exponent ? exponent : 1) - bias - fraction) << 52);
  const float value = (float)(significand * scale);
  return negative ? -value : value;
}
TW_HOST float tw_to_float(tw_float16 x) {
  const unsigned magnitude = x.bits & 0x7fff;
  const bool negative = x.bits >> 15;
  if (magnitude > 0x7c00) return tw_float_from_bits((int)((unsigned)x.bits >> 15 << 31 | 0x7f800000u | (magnitude & 0x3ff) << 13));
  if (magnitude == 0x7c00) return negative ? -TW_INFINITY_F32 : TW_INFINITY_F32;
  return tw_host_widen(magnitude, 10, 15, negative);
}
TW_HOST unsigned char tw_host_bits_of_e4m3(float x) {
  const unsigned sign = tw_bits_of(x) < 0 ? 0x80u : 0u;
  if (x != x) return 0x7f;
  const unsigned long long bits = fabsf(x) < 1024.0f ? tw_host_narrow(x, 3, -6) : 0x7e;
  return (unsigned char)(sign | (bits > 0x7e ? 0x7e : bits));
}
TW_HOST unsigned char tw_host_bits_of_e5m2(float x) {
  const unsigned sign = tw_bits_of(x) < 0 ? 0x80u : 0u;
  if (x != x) return 0x7f;
  const unsigned long long bits = fabsf(x) < 131072.0f ? tw_host_narrow(x, 2, -14) : 0x7b;
  return (unsigned char)(sign | (bits > 0x7b ? 0x7b : bits));
}
TW_FUNCTION tw_float8_e4m3 tw_to_float8_e4m3(float x) { return {tw_host_bits_of_e4m3(x)}; }
TW_FUNCTION tw_float8_e5m2 tw_to_float8_e5m2(float x) { return {tw_host_bits_of_e5m2(x)}; }
TW_HOST float tw_to_float(tw_float8_e4m3 x) {
  const unsigned magnitude = x.bits & 0x7f;
  if (magnitude == 0x7f) return tw_float_from_bits((x.bits >> 7) ? (int)0xffffe000u : 0x7fffe000);
  return tw_host_widen(magnitude, 3, 7, x.bits >> 7);
}
TW_HOST float tw_to_float(tw_float8_e5m2 x) { return tw_to_float(tw_float16{(unsigned short)(x.bits << 8)}); }

TW_HOST unsigned tw_pack_float16(float low, float high) { return tw_to_float16(low).bits | (unsigned)tw_to_float16(high).bits << 16; }
TW_HOST unsigned tw_pack_bfloat16(float low, float high) { return tw_to_bfloat16(low).bits | (unsigned)tw_to_bfloat16(high).bits << 16; }
TW_HOST unsigned tw_to_tf32(float x) {
  const unsigned bits = (unsigned)tw_bits_of(x);
  if ((bits & 0x7fffffff) >= 0x7f800000) return x != x ? 0x7fffffffu : bits;
  return bits + 0x1000;
}

// --- memory ---

TW_HOST void tw_check_vector(const void *place, unsigned long bytes, int kind) {
  if ((unsigned long long)place % (bytes < 16 ? bytes : 16)) tw_emulated_fault("a vector of elements that does not begin at a multiple of its bytes");
  tw_emulated_touch(place, bytes, kind);
}
template <typename T, int n> TW_HOST void tw_load_vector(T (&own)[n], const T *place) {
  tw_check_vector(place, sizeof(own), TW_READ);
  __builtin_memcpy(own, place, sizeof(own));
}
template <typename T, int n> TW_HOST void tw_store_vector(T *place, const T (&own)[n]) {
  tw_check_vector(place, sizeof(own), TW_WRITE);
  __builtin_memcpy(place, own, sizeof(own));
}
TW_HOST void tw_prefetch(const void *) {}

// --- barriers, copies, matrices ---

TW_HOST void tw_barrier_sync(int number, int threads) { tw_emulated_barrier(number, threads, 1); }
TW_HOST void tw_barrier_arrive(int number, int threads) { tw_emulated_barrier(number, threads, 0); }

TW_HOST void tw_copy_async_16(void *shared, const void *global) { tw_emulated_copy(shared, global, 16, true); }
TW_HOST void tw_copy_async_8(void *shared, const void *global) { tw_emulated_copy(shared, global, 8, true); }
TW_HOST void tw_copy_async_4(void *shared, const void *global) { tw_emulated_copy(shared, global, 4, true); }
TW_HOST void tw_copy_async_16_or_zero(void *shared, const void *global, bool valid) { tw_emulated_copy(shared, global, 16, valid); }
TW_HOST void tw_copy_async_8_or_zero(void *shared, const void *global, bool valid) { tw_emulated_copy(shared, global, 8, valid); }
TW_HOST void tw_copy_async_4_or_zero(void *shared, const void *global, bool valid) { tw_emulated_copy(shared, global, 4, valid); }
TW_HOST void tw_copy_async_commit() { tw_emulated_commit(); }
TW_HOST void tw_copy_async_wait(int open) { tw_emulated_wait(open); }

TW_HOST void tw_host_matrix(int operation, unsigned *words, const void *row, int count, bool transposed) {
  tw_matrix_arguments arguments = {words, (void *)row, count, transposed};
  tw_emulated_warp(operation, ~0u, &arguments);
}
TW_HOST void tw_load_matrix_x4(unsigned words[4], const void *row) { tw_host_matrix(TW_LOAD_MATRIX, words, row, 4, false); }
TW_HOST void tw_load_matrix_x2(unsigned words[2], const void *row) { tw_host_matrix(TW_LOAD_MATRIX, words, row, 2, false); }
TW_HOST void tw_load_matrix_x1(unsigned words[1], const void *row) { tw_host_matrix(TW_LOAD_MATRIX, words, row, 1, false); }
TW_HOST void tw_load_matrix_x4_transposed(unsigned words[4], const void *row) { tw_host_matrix(TW_LOAD_MATRIX, words, row, 4, true); }
TW_HOST unsigned tw_permute_bytes(unsigned first, unsigned second, unsigned places) {
  const unsigned long long both = (unsigned long long)second << 32 | first;
  unsigned word = 0;
  for (int i = 0; i < 4; ++i) word |= (unsigned)(both >> 8 * (places >> 4 * i & 7) & 255) << 8 * i;
  return word;
}
TW_HOST void tw_load_matrix_x2_transposed(unsigned words[2], const void *row) { tw_host_matrix(TW_LOAD_MATRIX, words, row, 2, true); }
TW_HOST void tw_store_matrix_x4(void *row, const unsigned words[4]) {
  tw_host_matrix(TW_STORE_MATRIX, (unsigned *)words, row, 4, false);
}

TW_HOST void tw_host_mma(int operation, void *sums, const unsigned *left, const unsigned *right) {
  tw_mma_arguments arguments = {sums, left, right};
  tw_emulated_warp(operation, ~0u, &arguments);
}
TW_HOST void tw_mma_m16n8k16_f16(float sums[4], const unsigned left[4], const unsigned right[2]) { tw_host_mma(TW_MMA_F16, sums, left, right); }
TW_HOST void tw_mma_m16n8k16_bf16(float sums[4], const unsigned left[4], const unsigned right[2]) { tw_host_mma(TW_MMA_BF16, sums, left, right); }
TW_HOST void tw_mma_m16n8k8_tf32(float sums[4], const unsigned left[4], const unsigned right[2]) { tw_host_mma(TW_MMA_TF32, sums, left, right); }
TW_HOST void tw_mma_m16n8k32_s8(int sums[4], const unsigned left[4], const unsigned right[2]) { tw_host_mma(TW_MMA_S8, sums, left, right); }
TW_HOST void tw_mma_m16n8k16_s8(int sums[4], const unsigned left[2], const unsigned right[1]) { tw_host_mma(TW_MMA_S8_K16, sums, left, right); }
TW_HOST void tw_mma_m16n8k32_u8(int sums[4], const unsigned left[4], const unsigned right[2]) { tw_host_mma(TW_MMA_U8, sums, left, right); }
TW_HOST void tw_mma_m16n8k32_u8s8(int sums[4], const unsigned left[4], const unsigned right[2]) { tw_host_mma(TW_MMA_U8S8, sums, left, right); }
TW_HOST void tw_mma_m16n8k32_s8u8(int sums[4], const unsigned left[4], const unsigned right[2]) { tw_host_mma(TW_MMA_S8U8, sums, left, right); }
TW_HOST void tw_mma_m16n8k32_e4m3(float sums[4], const unsigned left[4], const unsigned right[2]) { tw_host_mma(TW_MMA_E4M3, sums, left, right); }
TW_HOST void tw_mma_m16n8k32_e5m2(float sums[4], const unsigned left[4], const unsigned right[2]) { tw_host_mma(TW_MMA_E5M2, sums, left, right); }

// --- Hopper ---

#define TW_REGISTERS_MORE(count) ((void)0)
#define TW_REGISTERS_FEWER(count) ((void)0)

TW_HOST void tw_mbarrier_init(unsigned long long *barrier, unsigned arrivals) { tw_emulated_mbarrier_init(barrier, arrivals); }
TW_HOST void tw_mbarrier_init_fence() {}
TW_HOST void tw_mbarrier_arrive(unsigned long long *barrier) { tw_emulated_mbarrier_arrive(barrier, 0); }
TW_HOST void tw_mbarrier_expect(unsigned long long *barrier, unsigned bytes) { tw_emulated_mbarrier_arrive(barrier, bytes); }
TW_HOST void tw_mbarrier_wait(unsigned long long *barrier, unsigned parity) { tw_emulated_mbarrier_wait(barrier, parity); }
TW_HOST void tw_bulk_load(void *shared, const void *global, unsigned bytes, unsigned long long *barrier) {
  tw_emulated_bulk_load(shared, global, bytes, barrier);
}
TW_HOST void tw_bulk_store(void *global, const void *shared, unsigned bytes) { tw_emulated_bulk_store(global, shared, bytes); }
TW_HOST void tw_bulk_commit() { tw_emulated_bulk_commit(); }
TW_HOST void tw_bulk_wait_all() { tw_emulated_bulk_wait(); }
TW_HOST void tw_async_proxy_fence() { tw_emulated_proxy_fence(); }

TW_HOST unsigned long long tw_wgmma_left(const void *shared) {
  return (unsigned long long)((tw_emulated_shared_address(shared) & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
TW_HOST unsigned long long tw_wgmma_right(const void *shared, unsigned distance) {
  return (unsigned long long)((tw_emulated_shared_address(shared) & 0x3ffff) >> 4) | (unsigned long long)(distance >> 4) << 16 | 8ull << 32;
}
TW_HOST void tw_wgmma_fence() {}
TW_HOST void tw_wgmma_commit() { tw_emulated_wgmma_commit(); }
TW_HOST void tw_wgmma_wait(int open) { tw_emulated_wgmma_wait(open); }
TW_HOST void tw_host_wgmma(int operation, int columns, void *sums, unsigned long long left, unsigned long long right, int accumulates) {
  tw_wgmma_arguments arguments = {operation, columns, sums, left, right, accumulates != 0, nullptr};
  tw_emulated_wgmma(&arguments);
}
#define TW_WGMMA(format, steps, operation, sum, columns) \
  TW_HOST void tw_wgmma_m64n##columns##k##steps##_##format(sum sums[columns / 2], unsigned long long left, unsigned long long right, \
                                                           int accumulates) { \
    tw_host_wgmma(operation, columns, sums, left, right, accumulates); \
  }
#define TW_WGMMA_SHAPES(format, steps, operation, sum) \
  TW_WGMMA(format, steps, operation, sum, 64) \
  TW_WGMMA(format, steps, operation, sum, 128) \
  TW_WGMMA(format, steps, operation, sum, 256)
TW_WGMMA_SHAPES(f16, 16, TW_MMA_F16, float)
TW_WGMMA_SHAPES(bf16, 16, TW_MMA_BF16, float)
TW_WGMMA_SHAPES(e4m3, 32, TW_MMA_E4M3, float)
TW_WGMMA_SHAPES(e5m2, 32, TW_MMA_E5M2, float)
TW_WGMMA_SHAPES(s8, 32, TW_MMA_S8, int)
TW_WGMMA_SHAPES(u8s8, 32, TW_MMA_U8S8, int)
#define TW_WGMMA_TF32(columns) \
  TW_HOST void tw_wgmma_m64n##columns##k8_tf32(float sums[columns / 2], const unsigned left[4], unsigned long long right, int accumulates) { \
    tw_wgmma_arguments arguments = {TW_MMA_TF32, columns, sums, 0, right, accumulates != 0, left}; \
    tw_emulated_wgmma(&arguments); \
  }
TW_WGMMA_TF32(64)
TW_WGMMA_TF32(128)
TW_WGMMA_TF32(256)
