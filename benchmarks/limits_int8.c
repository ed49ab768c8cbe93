/* What one core can do at most with products of bytes, summed exactly in 32 bits.
 *
 * With VNNI an instruction multiplies four bytes a lane and adds them; without it the exact way is products of pairs of 16 bits, which
 * were widened before, and an addition. Neither counts loading or widening. Assumes GCC or Clang and -march=native. Guarantees that
 * nothing is optimized away; 0 products where the core has neither instruction.
 */
#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512VNNI__)
typedef __m512i vector;
enum { PRODUCTS = 64, ACCUMULATORS = 10 };
#define STEP(sum, x, y) _mm512_dpbusd_epi32(sum, x, y)
#elif defined(__AVXVNNI__)
typedef __m256i vector;
enum { PRODUCTS = 32, ACCUMULATORS = 10 };
#define STEP(sum, x, y) _mm256_dpbusd_avx_epi32(sum, x, y)
#elif defined(__AVX2__)
typedef __m256i vector;
enum { PRODUCTS = 16, ACCUMULATORS = 6 }; /* only the addition waits; more would not stay in registers */
#define STEP(sum, x, y) _mm256_add_epi32(sum, _mm256_madd_epi16(x, y))
#else
enum { PRODUCTS = 0, ACCUMULATORS = 0 };
#endif

/* How many products `rounds` rounds are; none of the sums waits for the one before it. */
int64_t tw_int8_products(int64_t rounds, int32_t *result) {
#if defined(STEP)
  vector sums[ACCUMULATORS] = {0}, x = {1}, y = {2};
  for (int64_t round = 0; round < rounds; round++) {
#pragma GCC unroll 16
    for (int i = 0; i < ACCUMULATORS; i++) {
      __asm__ volatile("" : "+x"(x)); /* so that a product is not taken out of the loop */
      sums[i] = STEP(sums[i], x, y);
    }
  }
  for (int i = 1; i < ACCUMULATORS; i++) {
    sums[0] += sums[i];
  }
  *result = (int32_t)sums[0][0];
#endif
  return rounds * ACCUMULATORS * PRODUCTS;
}
