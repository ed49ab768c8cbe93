/* What one core can do at most: multiply-adds in registers, and reads and writes of memory beyond the caches.
 *
 * Assumes GCC or Clang; VECTOR_BYTES is the width of a vector register (give -march=native with it). Guarantees that nothing is
 * optimized away: every result is used. Buffers are aligned to 64 bytes and their sizes are multiples of 4096 bytes.
 */
#include <stddef.h>
#include <stdint.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#ifndef VECTOR_BYTES
#define VECTOR_BYTES 16
#endif

enum { ACCUMULATORS = 12, PAGE = 4096, PER_PAGE = PAGE / VECTOR_BYTES, AHEAD = 1024 };

typedef float floats __attribute__((vector_size(VECTOR_BYTES)));
typedef double doubles __attribute__((vector_size(VECTOR_BYTES)));

/* `rounds` times ACCUMULATORS multiply-adds of whole vectors, none of which waits for the one before it. */
#define PEAK(NAME, ELEMENT, VECTOR)                                                        \
  ELEMENT NAME(int64_t rounds, ELEMENT factor) {                                           \
    VECTOR sums[ACCUMULATORS], total, by = (VECTOR){0} + factor;                           \
    for (int i = 0; i < ACCUMULATORS; i++) {                                               \
      sums[i] = by + (ELEMENT)i;                                                           \
    }                                                                                      \
    for (int64_t round = 0; round < rounds; round++) {                                     \
      for (int i = 0; i < ACCUMULATORS; i++) {                                             \
        sums[i] = sums[i] * by + by;                                                       \
      }                                                                                    \
    }                                                                                      \
    total = sums[0];                                                                       \
    for (int i = 1; i < ACCUMULATORS; i++) {                                               \
      total += sums[i];                                                                    \
    }                                                                                      \
    ELEMENT result = 0;                                                                    \
    for (size_t i = 0; i < sizeof(VECTOR) / sizeof(ELEMENT); i++) {                        \
      result += total[i];                                                                  \
    }                                                                                      \
    return result;                                                                         \
  }

PEAK(tw_peak_float32, float, floats)
PEAK(tw_peak_float64, double, doubles)

/* Reads `bytes` as `streams` parts side by side, each in order, `ahead` bytes prefetched (0: left to the hardware). */
float tw_read(const char *memory, int64_t bytes, int64_t streams, int64_t ahead) {
  int64_t part = bytes / streams / PAGE * PAGE;
  floats sums[4] = {{0}};
  for (int64_t page = 0; page < part; page += PAGE) {
    for (int64_t stream = 0; stream < streams; stream++) {
      const char *from = memory + stream * part + page;
      for (int64_t line = 0; line < PAGE; line += 4 * VECTOR_BYTES) {
        for (int i = 0; i < 4; i++) {
          if (ahead != 0 && i * VECTOR_BYTES % 64 == 0) {
            __builtin_prefetch(from + line + ahead + i * VECTOR_BYTES);
          }
          sums[i] += *(const floats *)(from + line + i * VECTOR_BYTES);
        }
      }
    }
  }
  sums[0] += sums[1] + sums[2] + sums[3];
  return sums[0][0];
}

static void store(char *to, floats value, int past_caches) {
#if defined(__AVX512F__) && VECTOR_BYTES == 64
  if (past_caches) {
    _mm512_stream_ps((float *)to, (__m512)value);
    return;
  }
#elif defined(__AVX__) && VECTOR_BYTES == 32
  if (past_caches) {
    _mm256_stream_ps((float *)to, (__m256)value);
    return;
  }
#elif defined(__SSE2__) && VECTOR_BYTES == 16
  if (past_caches) {
    _mm_stream_ps((float *)to, (__m128)value);
    return;
  }
#endif
  *(floats *)to = value;
}

/* Writes `bytes`: the sums of the vectors of `sources` parts of `memory`, each of as many bytes (none: a constant). */
#define MIX(NAME, PAST_CACHES)                                                             \
  static void NAME(char *to, const char *memory, int64_t bytes, int64_t sources) {         \
    for (int64_t at = 0; at < bytes; at += VECTOR_BYTES) {                                 \
      floats value = {0};                                                                  \
      for (int64_t source = 0; source < sources; source++) {                               \
        value += *(const floats *)(memory + source * bytes + at);                          \
      }                                                                                    \
      store(to + at, value, PAST_CACHES);                                                  \
    }                                                                                      \
  }

MIX(mix_plain, 0)
MIX(mix_past, 1)

void tw_mix(char *to, const char *memory, int64_t bytes, int64_t sources, int64_t past_caches) {
  /* one loop for each count of sources, so that none has a loop inside */
  for (int64_t count = 0; count <= 4; count++) {
    if (count == sources) {
      (past_caches ? mix_past : mix_plain)(to, memory, bytes, count);
    }
  }
}
