/* Softmax, layer norm and transposes by hand, for one core with AVX2 and FMA: what such kernels can reach at most.
 *
 * Softmax and layer norm go over a row while it is near, and prefetch the next one in their last two loops. A transpose turns a
 * block in a buffer that the second level of memory holds, and prefetches the next one while it stores. Assumes: columns are a
 * multiple of 32 and at most MOST_COLUMNS; sides of a transpose are multiples of its blocks, which are multiples of 16 and hold at
 * most MOST_BLOCK elements; results past the caches are aligned to 32 bytes. `step` is the distance of rows, of operand and result:
 * 0 takes one row again and again, as near as can be, and so do `repeats` of a transpose; `past_caches`
 * stores to memory itself. Guarantees: the results of the formulas where no exponential is subnormal (a branch for those is there,
 * as in compiled code, and clamps).
 */
#include <math.h>
#include <stdint.h>

enum { MOST_COLUMNS = 8192, MOST_BLOCK = 32768, LINE = 16, PADDING = 16 };

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

int64_t tw_has_rooflines(void) { return 1; }

typedef __m256 floats;
#define ALL(number) _mm256_set1_ps(number)

/* No function: GCC drops calls of one that does nothing but this. */
#define ahead(from) _mm_prefetch((const char *)(from), _MM_HINT_T0)

static inline void store(float *to, floats value, int past_caches) {
  if (past_caches) {
    _mm256_stream_ps(to, value);
  } else {
    _mm256_storeu_ps(to, value);
  }
}

static inline float sum_of(floats value) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

static inline float largest_of(floats value) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

static inline floats exponential(floats x) {
  floats shifted = _mm256_fmadd_ps(x, ALL(1.44269504f), ALL(12582912.0f)), n = _mm256_sub_ps(shifted, ALL(12582912.0f));
  floats r = _mm256_fmadd_ps(n, ALL(-3.194618329871446e-05f), _mm256_fmadd_ps(n, ALL(-0.693115234375f), x));
  floats square = _mm256_mul_ps(r, r), low = _mm256_fmadd_ps(r, ALL(0.16666517f), ALL(0.49999994f));
  floats high = _mm256_fmadd_ps(square, ALL(0.0013839049f), _mm256_fmadd_ps(r, ALL(0.008369196f), ALL(0.041668102f)));
  floats result = _mm256_add_ps(_mm256_fmadd_ps(_mm256_fmadd_ps(high, square, low), square, r), ALL(1.0f));
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(result), _mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
}

static __attribute__((noinline)) floats rare_exponential(floats x) { return exponential(_mm256_max_ps(x, ALL(-87.0f))); }

/* The largest element of a row, NaN where one is: two comparisons of four registers tell. */
static float row_maximum(const float *from, int64_t columns) {
  floats first = ALL(-INFINITY), second = first, unordered = _mm256_setzero_ps();
  for (int64_t k = 0; k < columns; k += 32) {
    floats a = _mm256_loadu_ps(from + k), b = _mm256_loadu_ps(from + k + 8);
    floats c = _mm256_loadu_ps(from + k + 16), d = _mm256_loadu_ps(from + k + 24);
    first = _mm256_max_ps(first, _mm256_max_ps(a, b));
    second = _mm256_max_ps(second, _mm256_max_ps(c, d));
    floats either = _mm256_or_ps(_mm256_cmp_ps(a, b, _CMP_UNORD_Q), _mm256_cmp_ps(c, d, _CMP_UNORD_Q));
    unordered = _mm256_or_ps(unordered, either);
  }
  return _mm256_movemask_ps(unordered) ? NAN : largest_of(_mm256_max_ps(first, second));
}

static inline floats exponentials(float *to, const float *from, floats maximum, floats sum) {
  floats x[4];
  for (int i = 0; i < 4; i++) {
    x[i] = _mm256_sub_ps(_mm256_loadu_ps(from + 8 * i), maximum);
  }
  floats least = _mm256_min_ps(_mm256_min_ps(x[0], x[1]), _mm256_min_ps(x[2], x[3]));
  int rare = _mm256_movemask_ps(_mm256_cmp_ps(least, ALL(-86.0f), _CMP_NGE_UQ));
  if (__builtin_expect(rare, 0)) {
    for (int i = 0; i < 4; i++) {
      x[i] = rare_exponential(x[i]);
    }
  } else {
    for (int i = 0; i < 4; i++) {
      x[i] = exponential(x[i]);
    }
  }
  for (int i = 0; i < 4; i++) {
    _mm256_storeu_ps(to + 8 * i, x[i]);
  }
  return _mm256_add_ps(sum, _mm256_add_ps(_mm256_add_ps(x[0], x[1]), _mm256_add_ps(x[2], x[3])));
}

static inline __attribute__((always_inline)) void scaled(float *to, const float *from, floats factor, int past) {
  for (int i = 0; i < 32; i += 8) {
    store(to + i, _mm256_mul_ps(_mm256_loadu_ps(from + i), factor), past);
  }
}

static inline __attribute__((always_inline)) void softmax(float *to, const float *from, int64_t rows, int64_t columns, int64_t step,
                                                          int past) {
  static float kept[MOST_COLUMNS];
  for (int64_t row = 0; row < rows; row++) {
    const float *x = from + row * step;
    floats maximum = ALL(row_maximum(x, columns)), sum = ALL(0.0f);
    for (int64_t k = 0; k < columns; k += 32) {
      ahead(x + columns + k);
      ahead(x + columns + k + LINE);
      sum = exponentials(kept + k, x + k, maximum, sum);
    }
    floats factor = ALL(1.0f / sum_of(sum));
    for (int64_t k = 0; k < columns; k += 32) {
      ahead(x + columns + k);
      ahead(x + columns + k + LINE);
      scaled(to + row * step + k, kept + k, factor, past);
    }
  }
  _mm_sfence();
}

static inline __attribute__((always_inline)) void normalized(float *to, const float *from, floats mean, floats factor, int past) {
  for (int i = 0; i < 32; i += 8) {
    store(to + i, _mm256_mul_ps(_mm256_sub_ps(_mm256_loadu_ps(from + i), mean), factor), past);
  }
}

static inline floats whole_sum(const floats *sums) {
  return ALL(sum_of(_mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]))));
}

static inline __attribute__((always_inline)) void layer_norm(float *to, const float *from, int64_t rows, int64_t columns,
                                                             int64_t step, int past) {
  floats none = ALL(0.0f);
  for (int64_t row = 0; row < rows; row++) {
    const float *x = from + row * step;
    floats sums[4] = {none, none, none, none}, squares[4] = {none, none, none, none};
    for (int64_t k = 0; k < columns; k += 32) {
      for (int i = 0; i < 4; i++) {
        sums[i] = _mm256_add_ps(sums[i], _mm256_loadu_ps(x + k + 8 * i));
      }
    }
    floats mean = _mm256_div_ps(whole_sum(sums), ALL((float)columns));
    for (int64_t k = 0; k < columns; k += 32) {
      ahead(x + columns + k);
      ahead(x + columns + k + LINE);
      for (int i = 0; i < 4; i++) {
        floats centred = _mm256_sub_ps(_mm256_loadu_ps(x + k + 8 * i), mean);
        squares[i] = _mm256_fmadd_ps(centred, centred, squares[i]);
      }
    }
    floats variance = _mm256_div_ps(whole_sum(squares), ALL((float)columns));
    floats factor = _mm256_div_ps(ALL(1.0f), _mm256_sqrt_ps(_mm256_add_ps(variance, ALL(1e-5f))));
    for (int64_t k = 0; k < columns; k += 32) {
      ahead(x + columns + k);
      ahead(x + columns + k + LINE);
      normalized(to + row * step + k, x + k, mean, factor, past);
    }
  }
  _mm_sfence();
}

/* 8 rows of 8 elements, turned. */
static inline void turn(float *to, int64_t to_step, const float *from, int64_t from_step) {
  floats rows[8], pairs[8], fours[8];
  for (int i = 0; i < 8; i++) {
    rows[i] = _mm256_loadu_ps(from + i * from_step);
  }
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    fours[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    fours[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
    fours[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    fours[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
  }
  for (int i = 0; i < 4; i++) {
    _mm256_storeu_ps(to + i * to_step, _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_step, _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31));
  }
}

static inline __attribute__((always_inline)) void transpose(float *to, const float *from, int64_t rows, int64_t columns,
                                                            int64_t high, int64_t wide, int past) {
  static float block[2 * MOST_BLOCK];
  int64_t line = high + PADDING, across = columns / wide, blocks = rows / high * across;
  for (int64_t number = 0; number < blocks; number++) {
    int64_t next = number + 1 < blocks ? number + 1 : number, prefetched = 0;
    const float *x = from + number / across * high * columns + number % across * wide;
    const float *there = from + next / across * high * columns + next % across * wide;
    for (int64_t i = 0; i < high; i += 8) {
      for (int64_t j = 0; j < wide; j += 8) {
        turn(block + j * line + i, line, x + i * columns + j, columns);
      }
    }
    for (int64_t j = 0; j < wide; j++) {
      float *y = to + (number % across * wide + j) * rows + number / across * high;
      for (int64_t i = 0; i < high; i += LINE, prefetched += LINE) {
        ahead(there + prefetched / wide * columns + prefetched % wide);
        store(y + i, _mm256_loadu_ps(block + j * line + i), past);
        store(y + i + 8, _mm256_loadu_ps(block + j * line + i + 8), past);
      }
    }
  }
  _mm_sfence();
}

void tw_softmax(float *to, const float *from, int64_t rows, int64_t columns, int64_t step, int64_t past_caches) {
  if (past_caches) {
    softmax(to, from, rows, columns, step, 1);
  } else {
    softmax(to, from, rows, columns, step, 0);
  }
}

void tw_layer_norm(float *to, const float *from, int64_t rows, int64_t columns, int64_t step, int64_t past_caches) {
  if (past_caches) {
    layer_norm(to, from, rows, columns, step, 1);
  } else {
    layer_norm(to, from, rows, columns, step, 0);
  }
}

void tw_transpose(float *to, const float *from, int64_t rows, int64_t columns, int64_t high, int64_t wide, int64_t past_caches,
                  int64_t repeats) {
  for (int64_t repeat = 0; repeat < repeats; repeat++) {
    if (past_caches) {
      transpose(to, from, rows, columns, high, wide, 1);
    } else {
      transpose(to, from, rows, columns, high, wide, 0);
    }
  }
}

#else

int64_t tw_has_rooflines(void) { return 0; }

#endif
