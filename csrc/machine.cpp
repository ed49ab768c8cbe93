/* CPUs, memory and CPU features; see machine.h. */
#include "machine.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace {

/* Reads a small file as text; returns its length, or -1. */
int64_t read_text(const char *path, char *text, size_t capacity) {
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0) return -1;
  size_t length = 0;
  while (length + 1 < capacity) {
    ssize_t got = read(file, text + length, capacity - 1 - length);
    if (got <= 0) break;
    length += (size_t)got;
  }
  close(file);
  text[length] = 0;
  return (int64_t)length;
}

/* Copies the cgroup path of `controller` ("" is the v2 hierarchy) out of /proc/self/cgroup. */
bool find_cgroup(const char *controller, char *path, size_t capacity) {
  char text[4096];
  if (read_text("/proc/self/cgroup", text, sizeof text) < 0) return false;
  for (char *line = text; *line != 0;) {
    char *end = strchr(line, '\n');
    if (end != nullptr) *end = 0;
    char *controllers = strchr(line, ':');
    char *group = controllers == nullptr ? nullptr : strchr(controllers + 1, ':');
    if (group != nullptr) {
      *group = 0;
      for (char *name = controllers + 1;;) {
        size_t length = strcspn(name, ",");
        if (strlen(controller) == length && strncmp(name, controller, length) == 0) {
          snprintf(path, capacity, "%s", group + 1);
          return true;
        }
        if (name[length] == 0) break;
        name += length + 1;
      }
    }
    if (end == nullptr) break;
    line = end + 1;
  }
  return false;
}

/* Calls `visit` with the text of `file` in the group's folder and in each folder above it, up to the mount. A container
 * often sees its own group mounted at the root, so the path of /proc/self/cgroup may not exist: that is no error. */
void visit_cgroup(const char *mount, const char *controller, const char *file,
                  void (*visit)(const char *text, const char *folder, int64_t *limit), int64_t *limit) {
  char group[2048];
  if (!find_cgroup(controller, group, sizeof group)) return;
  for (;;) {
    char folder[3072], path[3200], text[256];
    size_t length = strlen(group);
    while (length > 0 && group[length - 1] == '/') group[--length] = 0;
    snprintf(folder, sizeof folder, "%s%s", mount, group);
    snprintf(path, sizeof path, "%s/%s", folder, file);
    if (read_text(path, text, sizeof text) > 0) visit(text, folder, limit);
    char *slash = strrchr(group, '/');
    if (slash == nullptr) return;
    *slash = 0;
  }
}

void lower(int64_t *limit, int64_t value) {
  if (value < *limit) *limit = value;
}

void visit_cpu_max(const char *text, const char *, int64_t *limit) { /* "150000 100000" or "max 100000" */
  char *end = nullptr;
  long long quota = strtoll(text, &end, 10);
  if (end == text) return;
  long long period = strtoll(end, nullptr, 10);
  if (quota > 0 && period > 0) lower(limit, quota / period);
}

void visit_cfs_quota(const char *text, const char *folder, int64_t *limit) { /* "-1" is no limit */
  char path[3200], period_text[64];
  snprintf(path, sizeof path, "%s/cpu.cfs_period_us", folder);
  if (read_text(path, period_text, sizeof period_text) <= 0) return;
  long long quota = strtoll(text, nullptr, 10), period = strtoll(period_text, nullptr, 10);
  if (quota > 0 && period > 0) lower(limit, quota / period);
}

void visit_memory_limit(const char *text, const char *, int64_t *limit) { /* bytes or "max" */
  char *end = nullptr;
  long long bytes = strtoll(text, &end, 10);
  if (end != text && bytes > 0) lower(limit, bytes);
}

#if defined(__x86_64__)

enum leaf { LEAF_1, LEAF_7_0, LEAF_7_1, LEAF_EXTENDED_1, LEAF_EXTENDED_7, LEAF_EXTENDED_8, LEAF_13_1, LEAF_20, LEAF_25, LEAF_COUNT };
enum state { NONE = 0, AVX = 0x6, AVX512 = 0xe6, AMX = 0x60006 }; /* XCR0 bits that the system must have enabled */
enum place { EAX, EBX, ECX, EDX, ALWAYS };

struct feature {
  const char *name;
  leaf where;
  place part;
  int bit;
  state needs;
};

/* LLVM's names, in the order of the cpuid leaves. */
const feature feature_table[] = {
    {"64bit", LEAF_EXTENDED_1, EDX, 29, NONE}, {"x87", LEAF_1, EDX, 0, NONE}, {"cx8", LEAF_1, EDX, 8, NONE},
    {"cmov", LEAF_1, EDX, 15, NONE}, {"mmx", LEAF_1, EDX, 23, NONE}, {"fxsr", LEAF_1, EDX, 24, NONE},
    {"sse", LEAF_1, EDX, 25, NONE}, {"sse2", LEAF_1, EDX, 26, NONE}, {"sse3", LEAF_1, ECX, 0, NONE},
    {"pclmul", LEAF_1, ECX, 1, NONE}, {"ssse3", LEAF_1, ECX, 9, NONE}, {"fma", LEAF_1, ECX, 12, AVX},
    {"cx16", LEAF_1, ECX, 13, NONE}, {"sse4.1", LEAF_1, ECX, 19, NONE}, {"sse4.2", LEAF_1, ECX, 20, NONE},
    {"crc32", LEAF_1, ECX, 20, NONE}, {"movbe", LEAF_1, ECX, 22, NONE}, {"popcnt", LEAF_1, ECX, 23, NONE},
    {"aes", LEAF_1, ECX, 25, NONE}, {"xsave", LEAF_1, ECX, 27, AVX}, {"avx", LEAF_1, ECX, 28, AVX},
    {"f16c", LEAF_1, ECX, 29, AVX}, {"rdrnd", LEAF_1, ECX, 30, NONE},
    {"fsgsbase", LEAF_7_0, EBX, 0, NONE}, {"bmi", LEAF_7_0, EBX, 3, NONE}, {"avx2", LEAF_7_0, EBX, 5, AVX},
    {"bmi2", LEAF_7_0, EBX, 8, NONE}, {"invpcid", LEAF_7_0, EBX, 10, NONE}, {"rtm", LEAF_7_0, EBX, 11, NONE},
    {"avx512f", LEAF_7_0, EBX, 16, AVX512}, {"evex512", LEAF_7_0, EBX, 16, AVX512},
    {"avx512dq", LEAF_7_0, EBX, 17, AVX512}, {"rdseed", LEAF_7_0, EBX, 18, NONE}, {"adx", LEAF_7_0, EBX, 19, NONE},
    {"avx512ifma", LEAF_7_0, EBX, 21, AVX512}, {"clflushopt", LEAF_7_0, EBX, 23, NONE},
    {"clwb", LEAF_7_0, EBX, 24, NONE}, {"avx512cd", LEAF_7_0, EBX, 28, AVX512}, {"sha", LEAF_7_0, EBX, 29, NONE},
    {"avx512bw", LEAF_7_0, EBX, 30, AVX512}, {"avx512vl", LEAF_7_0, EBX, 31, AVX512},
    {"avx512vbmi", LEAF_7_0, ECX, 1, AVX512}, {"pku", LEAF_7_0, ECX, 4, NONE}, {"waitpkg", LEAF_7_0, ECX, 5, NONE},
    {"avx512vbmi2", LEAF_7_0, ECX, 6, AVX512}, {"shstk", LEAF_7_0, ECX, 7, NONE}, {"gfni", LEAF_7_0, ECX, 8, NONE},
    {"vaes", LEAF_7_0, ECX, 9, AVX}, {"vpclmulqdq", LEAF_7_0, ECX, 10, AVX},
    {"avx512vnni", LEAF_7_0, ECX, 11, AVX512}, {"avx512bitalg", LEAF_7_0, ECX, 12, AVX512},
    {"avx512vpopcntdq", LEAF_7_0, ECX, 14, AVX512}, {"rdpid", LEAF_7_0, ECX, 22, NONE},
    {"kl", LEAF_7_0, ECX, 23, NONE}, {"cldemote", LEAF_7_0, ECX, 25, NONE}, {"movdiri", LEAF_7_0, ECX, 27, NONE},
    {"movdir64b", LEAF_7_0, ECX, 28, NONE}, {"enqcmd", LEAF_7_0, ECX, 29, NONE}, {"uintr", LEAF_7_0, EDX, 5, NONE},
    {"avx512vp2intersect", LEAF_7_0, EDX, 8, AVX512}, {"serialize", LEAF_7_0, EDX, 14, NONE},
    {"tsxldtrk", LEAF_7_0, EDX, 16, NONE}, {"pconfig", LEAF_7_0, EDX, 18, NONE}, {"amx-bf16", LEAF_7_0, EDX, 22, AMX},
    {"avx512fp16", LEAF_7_0, EDX, 23, AVX512}, {"amx-tile", LEAF_7_0, EDX, 24, AMX},
    {"amx-int8", LEAF_7_0, EDX, 25, AMX},
    {"sha512", LEAF_7_1, EAX, 0, AVX}, {"sm3", LEAF_7_1, EAX, 1, AVX}, {"sm4", LEAF_7_1, EAX, 2, AVX},
    {"avxvnni", LEAF_7_1, EAX, 4, AVX}, {"avx512bf16", LEAF_7_1, EAX, 5, AVX512},
    {"cmpccxadd", LEAF_7_1, EAX, 7, NONE}, {"amx-fp16", LEAF_7_1, EAX, 21, AMX}, {"hreset", LEAF_7_1, EAX, 22, NONE},
    {"avxifma", LEAF_7_1, EAX, 23, AVX}, {"avxvnniint8", LEAF_7_1, EDX, 4, AVX},
    {"avxneconvert", LEAF_7_1, EDX, 5, AVX}, {"amx-complex", LEAF_7_1, EDX, 8, AMX},
    {"avxvnniint16", LEAF_7_1, EDX, 10, AVX}, {"prefetchi", LEAF_7_1, EDX, 14, NONE},
    {"sahf", LEAF_EXTENDED_1, ECX, 0, NONE}, {"lzcnt", LEAF_EXTENDED_1, ECX, 5, NONE},
    {"sse4a", LEAF_EXTENDED_1, ECX, 6, NONE}, {"prfchw", LEAF_EXTENDED_1, ECX, 8, NONE},
    {"xop", LEAF_EXTENDED_1, ECX, 11, AVX}, {"lwp", LEAF_EXTENDED_1, ECX, 15, NONE},
    {"fma4", LEAF_EXTENDED_1, ECX, 16, AVX}, {"tbm", LEAF_EXTENDED_1, ECX, 21, NONE},
    {"mwaitx", LEAF_EXTENDED_1, ECX, 29, NONE}, {"clzero", LEAF_EXTENDED_8, EBX, 0, NONE},
    {"rdpru", LEAF_EXTENDED_8, EBX, 4, NONE}, {"wbnoinvd", LEAF_EXTENDED_8, EBX, 9, NONE},
    {"xsaveopt", LEAF_13_1, EAX, 0, AVX}, {"xsavec", LEAF_13_1, EAX, 1, AVX}, {"xsaves", LEAF_13_1, EAX, 3, AVX},
    {"ptwrite", LEAF_20, EBX, 4, NONE}, {"widekl", LEAF_25, EBX, 2, NONE},
};

struct registers {
  unsigned part[4];
};

registers read_leaf(leaf where) {
  static const unsigned numbers[LEAF_COUNT][2] = {{1, 0},          {7, 0},          {7, 1},    {0x80000001u, 0}, {0x80000007u, 0},
                                                  {0x80000008u, 0}, {13, 1}, {20, 0},         {25, 0}};
  registers result = {{0, 0, 0, 0}};
  unsigned number = numbers[where][0], sub = numbers[where][1];
  if (__get_cpuid_max(number & 0x80000000u, nullptr) < number) return result;
  __cpuid_count(number, sub, result.part[0], result.part[1], result.part[2], result.part[3]);
  return result;
}

uint64_t enabled_states() {
  if (((read_leaf(LEAF_1).part[ECX] >> 27) & 1) == 0) return 0; /* OSXSAVE */
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return ((uint64_t)high << 32) | low;
}

bool has_feature(const char *name, size_t length) {
  for (const feature &entry : feature_table) {
    if (strlen(entry.name) != length || memcmp(entry.name, name, length) != 0) continue;
    if (((read_leaf(entry.where).part[entry.part] >> entry.bit) & 1) == 0) return false;
    return (enabled_states() & (uint64_t)entry.needs) == (uint64_t)entry.needs;
  }
  return false;
}

#elif defined(__aarch64__)

struct feature {
  const char *name;
  unsigned long auxiliary;
  int bit;
};

const feature feature_table[] = {
    {"fp-armv8", AT_HWCAP, 0}, {"neon", AT_HWCAP, 1},    {"aes", AT_HWCAP, 3},   {"sha2", AT_HWCAP, 6},
    {"crc", AT_HWCAP, 7},      {"lse", AT_HWCAP, 8},     {"fullfp16", AT_HWCAP, 10}, {"rdm", AT_HWCAP, 12},
    {"dotprod", AT_HWCAP, 20}, {"fp16fml", AT_HWCAP, 23}, {"sve", AT_HWCAP, 22},  {"sve2", AT_HWCAP2, 1},
    {"i8mm", AT_HWCAP2, 13},   {"bf16", AT_HWCAP2, 14},
};

bool has_feature(const char *name, size_t length) {
  for (const feature &entry : feature_table)
    if (strlen(entry.name) == length && memcmp(entry.name, name, length) == 0)
      return ((getauxval(entry.auxiliary) >> entry.bit) & 1) != 0;
  return false;
}

#else

bool has_feature(const char *, size_t) { return false; }

#endif

}  // namespace

extern "C" int32_t tw_available_threads(void) {
  int64_t threads = 0;
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof set, &set) == 0) threads = CPU_COUNT(&set);
  if (threads <= 0) threads = sysconf(_SC_NPROCESSORS_ONLN); /* more CPUs than a cpu_set_t holds */
  int64_t quota = INT64_MAX;
  visit_cgroup("/sys/fs/cgroup", "", "cpu.max", visit_cpu_max, &quota);
  visit_cgroup("/sys/fs/cgroup/cpu", "cpu", "cpu.cfs_quota_us", visit_cfs_quota, &quota);
  if (quota < threads) threads = quota;
  return threads < 1 ? 1 : (int32_t)threads;
}

extern "C" int64_t tw_available_memory(void) {
  int64_t limit = INT64_MAX;
  char text[4096];
  if (read_text("/proc/meminfo", text, sizeof text) > 0) {
    const char *line = strstr(text, "MemAvailable:");
    if (line != nullptr) lower(&limit, (int64_t)strtoll(line + 13, nullptr, 10) * 1024);
  }
  visit_cgroup("/sys/fs/cgroup", "", "memory.max", visit_memory_limit, &limit);
  visit_cgroup("/sys/fs/cgroup/memory", "memory", "memory.limit_in_bytes", visit_memory_limit, &limit);
  return limit;
}

extern "C" int32_t tw_missing_feature(const char *features, char *name, size_t capacity) {
  if (features == nullptr) return 0;
  for (const char *entry = features; *entry != 0;) {
    size_t length = strcspn(entry, ",");
    const char *start = entry;
    size_t size = length;
    while (size > 0 && (*start == ' ' || *start == '+')) start++, size--;
    while (size > 0 && start[size - 1] == ' ') size--;
    if (size > 0 && *start != '-' && !has_feature(start, size)) {
      if (capacity > 0) snprintf(name, capacity, "%.*s", (int)size, start);
      return 1;
    }
    entry += length;
    if (*entry == ',') entry++;
  }
  return 0;
}
