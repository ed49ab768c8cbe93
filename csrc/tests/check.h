/* A test of csrc/ ends with exit code 1 at the first condition that does not hold. */
#ifndef TILEWRIGHT_TESTS_CHECK_H
#define TILEWRIGHT_TESTS_CHECK_H
#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                       \
  do {                                                                         \
    if (!(condition)) {                                                        \
      std::fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                            \
    }                                                                          \
  } while (0)
#endif
