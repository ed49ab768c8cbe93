// What the host bodies of the device header ask of the emulation. Called by the fiber of a thread while a block runs.

#pragma once

extern "C" {

// Shared memory: an array that the block has from now on, and a part of what the launch asked for.
void tw_emulated_shared(void *memory, unsigned long bytes, const char *name);
unsigned char *tw_emulated_dynamic(unsigned long offset, unsigned long bytes, const char *name);

// An access that the compiler does not report by itself. Kinds: what the matrix and copy units do is of another proxy.
enum { TW_READ, TW_WRITE, TW_ATOMIC };
void tw_emulated_touch(const void *place, unsigned long bytes, int kind);
void tw_emulated_fence();
// Ends the launch with a message.
[[noreturn]] void tw_emulated_fault(const char *what);

// A barrier of `threads` threads (0: all that have not returned); whoever does not wait only arrives.
void tw_emulated_barrier(int number, int threads, int waits);

// All lanes of the mask meet; the last one to arrive does `operation` on the arguments of all of them.
enum {
  TW_EXCHANGE, TW_BALLOT, TW_SYNC_WARP, TW_LOAD_MATRIX, TW_STORE_MATRIX, TW_MMA_F16, TW_MMA_BF16, TW_MMA_TF32, TW_MMA_S8, TW_MMA_U8,
  TW_MMA_U8S8, TW_MMA_S8U8, TW_MMA_S8_K16, TW_MMA_E4M3, TW_MMA_E5M2
};
struct tw_exchange_arguments { unsigned long long value; int source; };
struct tw_ballot_arguments { bool value; unsigned result; };
struct tw_matrix_arguments { unsigned *words; void *row; int count; bool transposed; };
struct tw_mma_arguments { void *sums; const unsigned *left, *right; };
void tw_emulated_warp(int operation, unsigned mask, void *arguments);

// Asynchronous copies of a thread, in groups; nothing is read where not `valid`.
void tw_emulated_copy(void *shared, const void *global, unsigned long bytes, bool valid);
void tw_emulated_commit();
void tw_emulated_wait(int open);

// Hopper: barriers in memory, bulk copies, the fence between stores and those units, products of four warps.
void tw_emulated_mbarrier_init(unsigned long long *barrier, unsigned arrivals);
void tw_emulated_mbarrier_arrive(unsigned long long *barrier, unsigned bytes);
void tw_emulated_mbarrier_wait(unsigned long long *barrier, unsigned parity);
void tw_emulated_bulk_load(void *shared, const void *global, unsigned bytes, unsigned long long *barrier);
void tw_emulated_bulk_store(void *global, const void *shared, unsigned bytes);
void tw_emulated_bulk_commit();
void tw_emulated_bulk_wait();
void tw_emulated_proxy_fence();
unsigned tw_emulated_shared_address(const void *shared);
// `operation`: that of the warp's product of the same operands.
// `words`: four of the left operand in registers, where it is not in shared memory.
struct tw_wgmma_arguments { int operation, columns; void *sums; unsigned long long left, right; bool accumulates; const unsigned *words; };
void tw_emulated_wgmma(struct tw_wgmma_arguments *arguments);
void tw_emulated_wgmma_commit();
void tw_emulated_wgmma_wait(int open);
}
