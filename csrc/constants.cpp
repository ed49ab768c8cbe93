/* The sidecar file of constants; see constants.h. */
#include "constants.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace {

const uint64_t prime_1 = 0x9e3779b185ebca87u, prime_2 = 0xc2b2ae3d27d4eb4fu, prime_3 = 0x165667b19e3779f9u;
const uint64_t prime_4 = 0x85ebca77c2b2ae63u, prime_5 = 0x27d4eb2f165667c5u;

inline uint64_t rotate(uint64_t value, int bits) { return (value << bits) | (value >> (64 - bits)); }

inline uint64_t read_64(const uint8_t *data) {
  uint64_t value;
  memcpy(&value, data, sizeof value);
  return value;
}

inline uint64_t round_of(uint64_t lane, uint64_t input) { return rotate(lane + input * prime_2, 31) * prime_1; }

inline uint64_t merge(uint64_t hash, uint64_t lane) { return (hash ^ round_of(0, lane)) * prime_1 + prime_4; }

int32_t refuse(char *error, size_t capacity, const char *path, const char *what) {
  if (error != nullptr && capacity > 0) snprintf(error, capacity, "constants file '%s': %s", path, what);
  return TW_ERROR_FILE;
}

/* Checks the header of the part at `place`; null when it is sound, and where the part after it begins (file_bytes: none). */
const char *check_header(const uint8_t *file, int64_t place, int64_t file_bytes, int64_t *next, char *text, size_t capacity) {
  const tw_constants_header *header = (const tw_constants_header *)(file + place);
  if (memcmp(header->magic, TW_CONSTANTS_MAGIC, 8) != 0) return "not a tilewright constants file (wrong magic)";
  if (header->header_bytes != TW_CONSTANTS_HEADER_BYTES) return "damaged header (unexpected header size)";
  if (header->digest[sizeof header->digest - 1] != 0) return "damaged header (digest is not terminated)";
  const int64_t room = file_bytes - place - TW_CONSTANTS_HEADER_BYTES;
  *next = file_bytes;
  if (header->bytes == (uint64_t)room) return nullptr;
  if (header->bytes < (uint64_t)room) {
    int64_t end = place + TW_CONSTANTS_HEADER_BYTES + (int64_t)header->bytes;
    *next = (end + TW_CONSTANTS_HEADER_BYTES - 1) / TW_CONSTANTS_HEADER_BYTES * TW_CONSTANTS_HEADER_BYTES;
    if (*next <= file_bytes - TW_CONSTANTS_HEADER_BYTES && memcmp(file + *next, TW_CONSTANTS_MAGIC, 8) == 0) return nullptr;
  }
  snprintf(text, capacity, "found %lld bytes, its header promises %llu: truncated or overwritten; save the model again",
           (long long)file_bytes, (unsigned long long)place + header->bytes + TW_CONSTANTS_HEADER_BYTES);
  return text;
}

/* Compares a part and the model; null when they agree, else a message in `text`. */
const char *compare(const tw_constants_header *header, int64_t bytes, const char *digest, char *text, size_t capacity) {
  if ((int64_t)header->bytes != bytes) {
    snprintf(text, capacity, "found constants of %llu bytes, the model expects %lld: it belongs to another model",
             (unsigned long long)header->bytes, (long long)bytes);
    return text;
  }
  if (digest != nullptr && strcmp(header->digest, digest) != 0) {
    snprintf(text, capacity, "found digest %s, the model expects %s: it belongs to another model", header->digest, digest);
    return text;
  }
  return nullptr;
}

/* Finds the model's part of the file; null when there is one, else a message, which is about the first part. */
const char *find_part(const uint8_t *file, int64_t file_bytes, int64_t bytes, const char *digest, int64_t *place, char *text,
                      size_t capacity) {
  char later[400];
  for (int64_t next = *place = 0; next < file_bytes;) {
    *place = next;
    const char *wrong = check_header(file, *place, file_bytes, &next, text, capacity);
    if (wrong != nullptr) return wrong;
    char *about = *place == 0 ? text : later;
    if (compare((const tw_constants_header *)(file + *place), bytes, digest, about, *place == 0 ? capacity : sizeof later) == nullptr)
      return nullptr;
  }
  return text;
}

}  // namespace

extern "C" uint64_t tw_checksum(const void *memory, size_t bytes) {
  const uint8_t *data = (const uint8_t *)memory;
  size_t left = bytes;
  uint64_t hash = prime_5;
  if (bytes >= 32) {
    uint64_t a = prime_1 + prime_2, b = prime_2, c = 0, d = 0 - prime_1;
    for (; left >= 32; left -= 32, data += 32) {
      a = round_of(a, read_64(data));
      b = round_of(b, read_64(data + 8));
      c = round_of(c, read_64(data + 16));
      d = round_of(d, read_64(data + 24));
    }
    hash = rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18);
    hash = merge(merge(merge(merge(hash, a), b), c), d);
  }
  hash += bytes;
  for (; left >= 8; left -= 8, data += 8) hash = rotate(hash ^ round_of(0, read_64(data)), 27) * prime_1 + prime_4;
  if (left >= 4) {
    uint32_t word;
    memcpy(&word, data, sizeof word);
    hash = rotate(hash ^ (word * prime_1), 23) * prime_2 + prime_3;
    left -= 4, data += 4;
  }
  for (; left > 0; left--, data++) hash = rotate(hash ^ (*data * prime_5), 11) * prime_1;
  hash = (hash ^ (hash >> 33)) * prime_2;
  hash = (hash ^ (hash >> 29)) * prime_3;
  return hash ^ (hash >> 32);
}

extern "C" int32_t tw_constants_open(const char *path, int64_t bytes, const char *digest, int32_t verify, tw_constants *constants,
                                     char *error, size_t capacity) {
  memset(constants, 0, sizeof *constants);
  char text[400];
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) {
    snprintf(text, sizeof text, "cannot be opened: %s; it is written beside the library when the model is saved", strerror(errno));
    return refuse(error, capacity, path, text);
  }
  struct stat status;
  if (fstat(file, &status) != 0 || !S_ISREG(status.st_mode) || status.st_size < TW_CONSTANTS_HEADER_BYTES) {
    close(file);
    return refuse(error, capacity, path, "too short to hold a header: truncated; save the model again");
  }
  size_t mapped = (size_t)status.st_size;
  void *mapping = mmap(nullptr, mapped, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (mapping == MAP_FAILED) {
    snprintf(text, sizeof text, "cannot be mapped: %s", strerror(errno));
    return refuse(error, capacity, path, text);
  }
  int64_t place = 0;
  const char *wrong = find_part((const uint8_t *)mapping, (int64_t)status.st_size, bytes, digest, &place, text, sizeof text);
  const tw_constants_header *header = (const tw_constants_header *)((const uint8_t *)mapping + place);
  const uint8_t *data = (const uint8_t *)mapping + place + TW_CONSTANTS_HEADER_BYTES;
  if (wrong == nullptr && verify && tw_checksum(data, (size_t)bytes) != header->checksum)
    wrong = "checksum differs: the file is damaged; save the model again";
  if (wrong != nullptr) {
    int32_t code = refuse(error, capacity, path, wrong);
    munmap(mapping, mapped);
    return code;
  }
  constants->data = data;
  constants->bytes = bytes;
  constants->mapping = mapping;
  constants->mapping_bytes = (int64_t)mapped;
  return TW_OK;
}

extern "C" void tw_constants_close(tw_constants *constants) {
  if (constants == nullptr) return;
  if (constants->mapping != nullptr) munmap(constants->mapping, (size_t)constants->mapping_bytes);
  memset(constants, 0, sizeof *constants);
}

/* Reads /proc/self/maps rather than calling dladdr: it also works in a static program, and needs no further library. */
extern "C" int32_t tw_constants_default_path(const tw_model *model, char *path, size_t capacity) {
  FILE *maps = fopen("/proc/self/maps", "re");
  if (maps == nullptr) return -1;
  char line[5000];
  int32_t result = -1;
  while (fgets(line, sizeof line, maps) != nullptr) {
    unsigned long long start, end;
    int name = -1;
    if (sscanf(line, "%llx-%llx %*s %*s %*s %*s %n", &start, &end, &name) < 2 || name < 0) continue;
    if ((uintptr_t)model < start || (uintptr_t)model >= end || line[name] != '/') continue;
    char *slash = strrchr(line + name, '/');
    *slash = 0;
    int length = snprintf(path, capacity, "%s/%s.weights", line + name, model->name);
    result = length > 0 && (size_t)length < capacity ? 0 : -1;
    break;
  }
  fclose(maps);
  return result;
}
