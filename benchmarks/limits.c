/* What one core can do at most: multiply-adds in registers, and reads and writes of memory beyond the caches.
 *
 * Assumes GCC or Clang; VECTOR_BYTES is the width of a vector register (give -march=native with it). Guarantees that nothing is
 * optimized away: every result is used. Buffers are aligned to 64 bytes and their sizes multiples of 4096 bytes.
 */
#include <stddef.h>
#include <stdint.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#ifndef VECTOR_BYTES
#define VECTOR_BYTES 16
#endif

enum { ACCUMULATORS = 12, LINE = 64 };

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

/* Reads `bytes` from as many places at a time as its name says: a prefetcher follows one place, up to the end of a page. */
#define READ(STREAMS)                                                                      \
  static float read_##STREAMS(const char *memory, int64_t bytes) {                         \
    int64_t part = bytes / STREAMS / LINE * LINE;                                          \
    floats sums[8] = {{0}};                                                                \
    for (int64_t at = 0; at < part; at += LINE) {                                          \
      for (int stream = 0; stream < STREAMS; stream++) {                                   \
        const char *line = memory + stream * part + at;                                    \
        for (int i = 0; i < LINE / VECTOR_BYTES; i++) {                                    \
          sums[(stream * (LINE / VECTOR_BYTES) + i) % 8] += *(const floats *)(line + i * VECTOR_BYTES); \
        }                                                                                  \
      }                                                                                    \
    }                                                                                      \
    for (int i = 1; i < 8; i++) {                                                          \
      sums[0] += sums[i];                                                                  \
    }                                                                                      \
    return sums[0][0];                                                                     \
  }

READ(1)
READ(2)
READ(4)
READ(6)
READ(8)

float tw_read(const char *memory, int64_t bytes, int64_t streams) {
  switch (streams) {
    case 2: return read_2(memory, bytes);
    case 4: return read_4(memory, bytes);
    case 6: return read_6(memory, bytes);
    case 8: return read_8(memory, bytes);
    default: return read_1(memory, bytes);
  }
}

static inline void store(char *to, floats value, int past_caches) {
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
  static inline __attribute__((always_inline)) void NAME(char *to, const char *memory, int64_t bytes, int64_t sources) {         \
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

/* A constant number of sources each, so that none has a loop inside. */
#define CASE(COUNT) \
  case COUNT: past_caches ? mix_past(to, memory, bytes, COUNT) : mix_plain(to, memory, bytes, COUNT); break;

void tw_mix(char *to, const char *memory, int64_t bytes, int64_t sources, int64_t past_caches) {
  switch (sources) {
    CASE(0)
    CASE(1)
    CASE(2)
    CASE(3)
    CASE(4)
  }
}
