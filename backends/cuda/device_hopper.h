// Hopper's own (sm_90a): barriers in memory, bulk copies, matrix instructions of four warps.
//
// Included by device.h for the device; emulation_hopper.cpp is what the host has in its place.

#pragma once

#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)

// A barrier in shared memory for `arrivals` arrivals and the bytes that copies announce: phases follow one another, numbered from 0.
TW_FUNCTION void tw_mbarrier_init(unsigned long long *barrier, unsigned arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(tw_shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes barriers that were initialised known to the copy engine; a barrier of the block follows.
TW_FUNCTION void tw_mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
TW_FUNCTION void tw_mbarrier_arrive(unsigned long long *barrier) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.shared::cta.b64 state, [%0]; }" :: "r"(tw_shared_address(barrier)) : "memory");
}
// Arrives, and announces bytes that copies will bring in this phase.
TW_FUNCTION void tw_mbarrier_expect(unsigned long long *barrier, unsigned bytes) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared::cta.b64 state, [%0], %1; }"
               :: "r"(tw_shared_address(barrier)), "r"(bytes) : "memory");
}
// Waits for the end of the phase whose number has that last bit.
TW_FUNCTION void tw_mbarrier_wait(unsigned long long *barrier, unsigned parity) {
  asm volatile(
      "{ .reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra again; }"
      :: "r"(tw_shared_address(barrier)), "r"(parity) : "memory");
}

// Copies of multiples of 16 bytes between places that are aligned to 16: to shared memory, completing on a barrier; and from there, in
// groups that the thread commits and waits for (until at most `open` of them still read shared memory).
TW_FUNCTION void tw_bulk_load(void *shared, const void *global, unsigned bytes, unsigned long long *barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               :: "r"(tw_shared_address(shared)), "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(tw_shared_address(barrier))
               : "memory");
}
TW_FUNCTION void tw_bulk_store(void *global, const void *shared, unsigned bytes) {
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;"
               :: "l"(__cvta_generic_to_global(global)), "r"(tw_shared_address(shared)), "r"(bytes) : "memory");
}
TW_FUNCTION void tw_bulk_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
TW_FUNCTION void tw_bulk_wait_all() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }

// What this thread has stored to shared memory becomes known to the copy engine and the matrix units; a barrier follows.
TW_FUNCTION void tw_async_proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)

// Operands of the instructions below: matrices of 16-bit elements, bytes, or tf32, in shared memory; the left one of tf32 in registers. (PTX
// ISA, asynchronous warpgroup level matrix shared memory layout, canonical layouts: the left matrix K-major with 128-byte swizzling; the
// right one without, MN-major of 16 bits, K-major of bytes and tf32.)
//
// Left: a row of the matrix is a row of 128 bytes, 64 steps of the contraction side by side or 128, whose 16-byte piece c lies in the place
// of c ^ (r % 8) in row r (`tw_swizzled`); the array is aligned to 1024 bytes; from byte 0, 32, 64 or 96 of a row that 8 divides.
TW_FUNCTION unsigned long long tw_wgmma_left(const void *shared) {
  return (unsigned long long)((tw_shared_address(shared) & 0x3ffff) >> 4) | 1ull << 16 | 64ull << 32 | 1ull << 62;
}
// Right: squares of 128 bytes: of 16 bits 8 steps, each 8 columns side by side; of bytes 8 columns, each 16 steps side by side, of tf32 4
// steps. The next 8 columns are the next square, and the next steps lie `distance` bytes further.
TW_FUNCTION unsigned long long tw_wgmma_right(const void *shared, unsigned distance) {
  return (unsigned long long)((tw_shared_address(shared) & 0x3ffff) >> 4) | (unsigned long long)(distance >> 4) << 16 | 8ull << 32;
}
// Before the first product, and whenever registers that one uses were written by other means.
TW_FUNCTION void tw_wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
TW_FUNCTION void tw_wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// All products but those of the last `open` groups have been added, and have read their operands (a constant, 0 or 1).
TW_FUNCTION void tw_wgmma_wait(int open) {
  if (open == 0) asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  else asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
}

// sums = left * right, or more than they were where it `accumulates`: 64 rows of 16 steps (of bytes 32) times N columns of as many, by the
// four warps of a group whose first one is a multiple of 4. Warp w has rows 16 w .., of each 8 columns the accumulators of a 16 x 8 product.
// `c`: how an asm statement holds a sum, "+f" or "+r".
#define TW_SUMS_4(c, i) c(sums[i]), c(sums[i + 1]), c(sums[i + 2]), c(sums[i + 3])
#define TW_SUMS_8(c, i) TW_SUMS_4(c, i), TW_SUMS_4(c, i + 4)
#define TW_SUMS_32(c) TW_SUMS_8(c, 0), TW_SUMS_8(c, 8), TW_SUMS_8(c, 16), TW_SUMS_8(c, 24)
#define TW_SUMS_64(c) TW_SUMS_32(c), TW_SUMS_8(c, 32), TW_SUMS_8(c, 40), TW_SUMS_8(c, 48), TW_SUMS_8(c, 56)
#define TW_SUMS_128(c) \
  TW_SUMS_64(c), TW_SUMS_8(c, 64), TW_SUMS_8(c, 72), TW_SUMS_8(c, 80), TW_SUMS_8(c, 88), \
  TW_SUMS_8(c, 96), TW_SUMS_8(c, 104), TW_SUMS_8(c, 112), TW_SUMS_8(c, 120)
#define TW_PLACES_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define TW_PLACES_64 TW_PLACES_32 ", " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define TW_PLACES_128 TW_PLACES_64 ", " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
// `l`, `r` and `a`: the places of the operands behind the `count` registers; `rest`: factors of one, and which matrices are transposed.
#define TW_WGMMA(format, steps, types, sum, c, rest, columns, count, l, r, a) \
  TW_FUNCTION void tw_wgmma_m64n##columns##k##steps##_##format(sum sums[count], unsigned long long left, unsigned long long right, \
                                                               int accumulates) { \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #a ", 0; " \
                 "wgmma.mma_async.sync.aligned.m64n" #columns "k" #steps types " {" TW_PLACES_##count "}, %" #l ", %" #r ", p" rest "; }" \
                 : TW_SUMS_##count(c) : "l"(left), "l"(right), "r"(accumulates)); \
  }
#define TW_WGMMA_SHAPES(format, steps, types, sum, c, rest) \
  TW_WGMMA(format, steps, types, sum, c, rest, 64, 32, 32, 33, 34) \
  TW_WGMMA(format, steps, types, sum, c, rest, 128, 64, 64, 65, 66) \
  TW_WGMMA(format, steps, types, sum, c, rest, 256, 128, 128, 129, 130)
TW_WGMMA_SHAPES(f16, 16, ".f32.f16.f16", float, "+f", ", 1, 1, 0, 1")
TW_WGMMA_SHAPES(bf16, 16, ".f32.bf16.bf16", float, "+f", ", 1, 1, 0, 1")
TW_WGMMA_SHAPES(e4m3, 32, ".f32.e4m3.e4m3", float, "+f", ", 1, 1")
TW_WGMMA_SHAPES(e5m2, 32, ".f32.e5m2.e5m2", float, "+f", ", 1, 1")
TW_WGMMA_SHAPES(s8, 32, ".s32.s8.s8", int, "+r", "")
TW_WGMMA_SHAPES(u8s8, 32, ".s32.u8.s8", int, "+r", "")

// 8 steps of tf32. The left operand is words of a 16 x 8 product (`tw_mma_m16n8k8_tf32`), of the rows of each warp, which nothing may change
// until the product has been waited for. `l0` to `l3`: their places.
#define TW_WGMMA_TF32(columns, count, l0, l1, l2, l3, r, a) \
  TW_FUNCTION void tw_wgmma_m64n##columns##k8_tf32(float sums[count], const unsigned left[4], unsigned long long right, int accumulates) { \
    asm volatile("{ .reg .pred p; setp.ne.b32 p, %" #a ", 0; " \
                 "wgmma.mma_async.sync.aligned.m64n" #columns "k8.f32.tf32.tf32 {" TW_PLACES_##count "}, " \
                 "{%" #l0 ", %" #l1 ", %" #l2 ", %" #l3 "}, %" #r ", p, 1, 1; }" \
                 : TW_SUMS_##count("+f") : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right), "r"(accumulates)); \
  }
TW_WGMMA_TF32(64, 32, 32, 33, 34, 35, 36, 37)
TW_WGMMA_TF32(128, 64, 64, 65, 66, 67, 68, 69)
TW_WGMMA_TF32(256, 128, 128, 129, 130, 131, 132, 133)

// How many registers a thread may have from here on (a multiple of 8): one group of warps gives what another one takes.
#define TW_REGISTERS_MORE(count) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(count))
#define TW_REGISTERS_FEWER(count) asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(count))

#endif
