/* The sidecar file of constants: opened by memory mapping, checked before use; and the checksum it carries.
 *
 * Checks on opening: magic, sizes against the file's size (so truncation is found without touching the pages), the digest
 * in the header against the model's, and, unless the caller declines, the XXH64 of the whole segment. XXH64 runs at memory
 * speed; it detects damage. It does not authenticate: whoever can write the file can write the code.
 *
 * The mapping is private and read only; the caller owns it and closes it once. Safe from any thread. C library only.
 */
#ifndef TILEWRIGHT_CONSTANTS_H
#define TILEWRIGHT_CONSTANTS_H
#include "abi.h"
#ifdef __cplusplus
extern "C" {
#endif

/* XXH64 with seed 0. */
uint64_t tw_checksum(const void *data, size_t bytes);

/* Opens `path` into `constants`: of several parts, the one that fits. `bytes` and `digest` are what the model says (digest
 * null: not compared). On failure returns TW_ERROR_FILE, writes a message to `error`, and leaves `constants` zeroed. */
int32_t tw_constants_open(const char *path, int64_t bytes, const char *digest, int32_t verify, tw_constants *constants,
                          char *error, size_t error_capacity);
void tw_constants_close(tw_constants *constants);

/* Writes the absolute path of the sidecar that belongs to `model`: "<model name>.weights" in the folder of the library or
 * program that holds the model. Returns 0, or -1 when /proc does not tell. */
int32_t tw_constants_default_path(const tw_model *model, char *path, size_t capacity);

#ifdef __cplusplus
}
#endif
#endif
