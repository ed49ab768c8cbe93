/* Loads a relocatable object (x86-64 ELF, as LLVM and C compilers emit it) into memory and relocates it: no linker, no LLVM.
 *
 * Assumes code that refers to nothing outside but the externals given, has no constructors, no thread-local storage and
 * no writable data (so it is reentrant by construction). Whatever breaks that is refused with a message.
 * Guarantees: every offset, size and index of the file is checked before use, so damaged bytes end in a message, never in
 * a wild access (that the machine code itself is what was compiled is the business of the caller's digest). Code is
 * mapped read and execute, all else read only; nothing is ever writable and executable at once.
 * Ownership: the input bytes may go away after loading; the code lives until tw_code_free. Thread safety: a loaded tw_code
 * is immutable; loading and freeing different ones is safe from any thread.
 */
#ifndef TILEWRIGHT_ELF_LOADER_H
#define TILEWRIGHT_ELF_LOADER_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

typedef struct tw_external {
  const char *name;
  const void *address;
} tw_external;

typedef struct tw_code tw_code;

/* Null on failure, with the reason in `error`. */
tw_code *tw_code_load(const uint8_t *object, size_t bytes, const tw_external *externals, size_t external_count, char *error,
                      size_t error_capacity);

/* Address of a global symbol that the object defines, with the bytes from there to the end of its section; null if none. */
const void *tw_code_symbol(const tw_code *code, const char *name, size_t *bytes);

/* 1 when [address, address + bytes) lies inside the loaded image. */
int32_t tw_code_contains(const tw_code *code, const void *address, size_t bytes);

size_t tw_code_bytes(const tw_code *code);
void tw_code_free(tw_code *code);

#ifdef __cplusplus
}
#endif
#endif
