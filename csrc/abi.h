/* tilewright C ABI, version 2: what generated code, the runtime and a host program agree on. C99.
 *
 * Three parties meet here:
 *   generated code   machine code emitted by a backend; position independent, no mutable globals, no calls by symbol
 *                    except memcpy, memset and memmove; everything else it needs comes through `tw_team`.
 *   runtime          csrc/: threads, barriers, workspace, loading. Knows buffers and launches, never an op.
 *   host             Python (module.cpp) or the C program that links an ahead-of-time artifact.
 *
 * Ownership: the host owns inputs, outputs, constants and (if it passes one) the workspace; generated code keeps no
 * pointer after `run` returns. Thread safety: everything here may be used by several callers at once as long as each
 * call has its own outputs and workspace.
 */
#ifndef TILEWRIGHT_ABI_H
#define TILEWRIGHT_ABI_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define TW_ABI_VERSION 2

/* Status codes; 0 is success, negative values are failures. */
enum tw_status {
  TW_OK = 0,
  TW_ERROR_INDEX = -1,        /* an index is outside its axis; detail: value, size of the axis */
  TW_ERROR_SHAPE = -2,        /* an argument's shape does not fit; detail: found, expected */
  TW_ERROR_MEMORY = -3,       /* the host could not allocate; detail: bytes asked for */
  TW_ERROR_ARGUMENT = -4,     /* wrong number, rank, dtype or null pointer */
  TW_ERROR_VERSION = -5,      /* the artifact needs another ABI version */
  TW_ERROR_CPU = -6,          /* this CPU lacks a feature the artifact was compiled for */
  TW_ERROR_FILE = -7,         /* a file is missing, truncated or corrupt */
  TW_ERROR_ASSERT = -8,       /* a runtime check of the program failed */
  TW_ERROR_INDEX_UNSIGNED = -9 /* what generated code says of an index of type uint64; callers get TW_ERROR_INDEX */
};

/* What a size was expected to be, given the number in detail[1] of tw_plan_function. */
enum tw_relation { TW_EXACTLY = 0, TW_AT_LEAST = 1, TW_AT_MOST = 2, TW_MULTIPLE_OF = 3 };

/* The team: one per call of `run`, shared by its threads. Generated code sees exactly these fields, by offset. */
typedef struct tw_team {
  /* Waits until every thread of the team arrived; returns `status` as seen by all of them at that point. */
  int32_t (*barrier)(struct tw_team *team);                                               /* offset 0 */
  /* Records a failure (the first one wins). `site` indexes the artifact's table of sites (source locations).
   * A thread that failed still meets the others at its next barrier, whose result makes all of them leave alike;
   * one that returned instead would leave the others waiting. */
  void (*fail)(struct tw_team *team, int32_t code, int32_t site, int64_t found, int64_t expected); /* offset 8 */
  /* Called by thread 0 after kernel `index` finished, only when profiling; null otherwise. */
  void (*mark)(struct tw_team *team, int32_t index);                                      /* offset 16 */
  int32_t status;                                                                         /* offset 24 */
  int32_t threads;                                                                        /* offset 28 */
  /* The runtime keeps its own fields behind these. */
} tw_team;

/* Entry points of generated code.
 * shapes: for every input in order, each of its dims (so rank 2 then rank 1 gives 3 numbers).
 * tw_plan checks the dims against the declared bounds and each other (same name, same size; constants; divisibility),
 * writes every output's dims in order, and the bytes of workspace `tw_thread` needs. On TW_ERROR_SHAPE, `where` gets
 * the position in `shapes`, `detail[0]` the size found, `detail[1]` the size expected and `detail[2]` a tw_relation. */
typedef int32_t (*tw_plan_function)(const int64_t *shapes, int64_t *output_shapes, int64_t *workspace_bytes,
                                    int64_t *where, int64_t *detail);
/* One thread's share of the whole program: called once on every thread of the team with its number. All buffers are
 * C-contiguous and 64-byte aligned or unaligned alike (generated code makes no alignment assumption on inputs and
 * outputs; constants and workspace are aligned to 64 bytes). Inputs and outputs do not overlap. `workspace` is what
 * all threads share; thread t has thread_bytes of its own at workspace - (t + 1) * thread_bytes. */
typedef int32_t (*tw_thread_function)(tw_team *team, const void *const *inputs, void *const *outputs,
                                      const int64_t *shapes, const uint8_t *constants, uint8_t *workspace,
                                      int64_t thread, int64_t threads);

/* What a host gives. Any function may be null: then the C library's or the process-wide pool is used. */
typedef struct tw_context {
  uint32_t abi_version;       /* TW_ABI_VERSION */
  int32_t threads;            /* 0: as many as the process may use (affinity, cgroup quota) */
  void *user;                 /* handed to the functions below */
  void *(*allocate)(void *user, size_t bytes, size_t alignment);
  void (*release)(void *user, void *memory);
  void (*log)(void *user, int32_t level, const char *message);
  /* Runs body(argument, thread, threads) once for each thread 0..threads-1, concurrently, and returns when all did. */
  int32_t (*parallel)(void *user, int32_t threads, void (*body)(void *argument, int32_t thread, int32_t threads),
                      void *argument);
  char *error;                /* receives a message, null-terminated, when a call fails; may be null */
  size_t error_capacity;
  const char *variant;        /* null: the best variant that the CPU can run (see tw_model); else the `target` of the one to
                                 use, the same in every call, since each variant has constants and a workspace of its own */
} tw_context;

/* The constants segment of a model, mapped from its sidecar file by `<name>_open`. Owned by the caller, who hands `data`
 * to `<name>_run` and gives the mapping back by `<name>_close`; read only, so any number of threads may share it. */
typedef struct tw_constants {
  const uint8_t *data;         /* aligned to 64 bytes; null when the model has no constants */
  int64_t bytes;
  void *mapping;               /* for tw_close only; null when the constants are embedded in the artifact */
  int64_t mapping_bytes;
} tw_constants;

/* The sidecar file: this header, zeros up to header_bytes, then the segment. Little endian. Where variants of a model have
 * different constants, such parts follow one another, each at a multiple of header_bytes; a variant uses the one with its
 * digest, and the others are not read. */
#define TW_CONSTANTS_MAGIC "TWCONST1"
#define TW_CONSTANTS_HEADER_BYTES 4096
typedef struct tw_constants_header {
  char magic[8];
  uint64_t header_bytes;       /* TW_CONSTANTS_HEADER_BYTES: the segment starts on a page */
  uint64_t bytes;              /* size of the segment; the file or the next part's padding follows */
  uint64_t checksum;           /* XXH64 (seed 0) of the segment: detects damage, not malice */
  char digest[128];            /* the model's constants_digest, null-terminated */
} tw_constants_header;

/* The golden section (optional): one recorded call, kept inside the constants segment at a multiple of 64.
 * Layout, all int64: magic, number of shape entries, the shapes as tw_plan_function takes them, then for every input
 * and every output in order (offset from the start of the section, a multiple of 64; bytes), then the data there.
 * `<name>_selftest` runs it: integers and bool must be equal; floats may differ by 1e-4 (float16 and bfloat16: 2e-2)
 * of the largest absolute value in that golden output; NaN must meet NaN and infinity the same infinity. */
#define TW_GOLDEN_MAGIC INT64_C(0x31444c4f47575400)   /* "\0TWGOLD1" read as little endian */

/* dtype codes of descriptors */
enum tw_dtype {
  TW_BOOL = 0, TW_INT8 = 1, TW_INT16 = 2, TW_INT32 = 3, TW_INT64 = 4,
  TW_UINT8 = 5, TW_UINT16 = 6, TW_UINT32 = 7, TW_UINT64 = 8,
  TW_FLOAT16 = 9, TW_BFLOAT16 = 10, TW_FLOAT32 = 11, TW_FLOAT64 = 12,
  /* an element a byte, the bits in its low end; nothing computes with these */
  TW_FLOAT8_E4M3FN = 13, TW_FLOAT8_E4M3FNUZ = 14, TW_FLOAT8_E5M2 = 15, TW_FLOAT8_E5M2FNUZ = 16, TW_FLOAT8_E8M0FNU = 17,
  TW_FLOAT4_E2M1FN = 18, TW_INT4 = 19, TW_UINT4 = 20, TW_INT2 = 21, TW_UINT2 = 22
};

/* An input or output. dims: rank entries; -1 where the size is symbolic (its name in dim_names[i], else null). */
typedef struct tw_tensor_descriptor {
  const char *name;
  int32_t dtype;
  int32_t rank;
  const int64_t *dims;
  const char *const *dim_names;
} tw_tensor_descriptor;

/* What an artifact says of itself; emitted as constant data beside the code under the symbol `tw_model`
 * (with a prefix in ahead-of-time builds).
 * A library may hold the model several times, compiled for different CPUs: its variants, which form a list, the best one
 * first. They agree in name, inputs and outputs, not in constants, kernels and memory. The runtime uses the first one whose
 * features the CPU has, unless tw_context.variant says which; no code of the others runs. */
typedef struct tw_model {
  uint32_t abi_version;
  uint32_t flags;
  const char *name;
  const char *target;          /* e.g. "cpu:x86-64-v3"; in process the system, e.g. "x86_64-linux" */
  const char *features;        /* comma separated CPU features the code uses, checked at load */
  const char *version;         /* tilewright version */
  int32_t input_count, output_count;
  const tw_tensor_descriptor *inputs, *outputs;
  int64_t constants_bytes;     /* size of the constants segment */
  const char *constants_digest;/* hex; names the sidecar file's content */
  const uint8_t *constants;    /* embedded constants, or null when they are in a sidecar file */
  int32_t kernel_count, site_count;
  const char *const *kernel_names;
  const char *const *sites;    /* messages for tw_team.fail: "take: index out of range at model.py:12" */
  tw_plan_function plan;
  tw_thread_function thread;
  int64_t static_workspace;    /* bytes, or -1 when sizes are symbolic */
  int64_t golden_offset;       /* golden section, from the start of the constants segment */
  int64_t golden_bytes;        /* its size; 0: the model has none */
  int64_t thread_bytes;        /* of the workspace for each thread, a multiple of 64; they lie before all else, thread 0 last */
  const struct tw_model *first_variant; /* the list of variants, the best one first; a model without others is a list of one */
  const struct tw_model *next_variant;  /* the next one of it, or null */
} tw_model;

#ifdef __cplusplus
}
#endif
#endif
