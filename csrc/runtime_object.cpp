/* The runtime as one position-independent object, tilewright/runtime/tw_runtime.o: what an ahead-of-time artifact links
 * beside the generated code. Compiled with hidden visibility, without exceptions and RTTI; refers to the C library only,
 * which tests/test_runtime.py checks. The anonymous namespaces of these files merge here, so their names must differ.
 */
#include "machine.cpp"
#include "pool.cpp"
#include "constants.cpp"
#include "run.cpp"
#include "selftest.cpp"
