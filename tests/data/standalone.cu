// Kernels of product, for sm_90a.


// kernel @packed_dot_max[R](%x0: in bf16[136*R], %x1: in bf16[49152], %y0: out bf16[240*R]) {
//   for %t0 in 0..2*((R + 127) // 128) block(132) {
//     let %panel: 0.. = index((t0 // ((R + 127) // 128)))
//     let %tile: 0.. = index((t0 % ((R + 127) // 128)))
//     alloc %left: bf16[768, 64] shared
//     alloc %right: bf16[384, 128] shared
//     alloc %sums: f32[8, 16, 128] fragment
//     for %w1 in 0..8 warp {
//       for %e in 0..2048 lane {
//         %sums[w1, (e // 128), (e % 128)] = f32 0.0
//       }
//     }
//     for %k0 in 0..3 pipeline(6) {
//       copy_bulk %right[64*k0, 0] = %x1[8192*k0 + 24576*panel], 8192
//       for %c in 0..128 thread {
//         for %i0 in 0..8 unrolled {
//           let %row: 0..127 = index(16*i0 + (c // 8))
//           let %piece: 0..7 = index((c % 8))
//           copy_async %left[128*k0 + row, 8*piece] = %x0[64*k0 + 8*piece + 136*min(R - 1, row + 128*tile)], 8 given lt(index(64*k0 + 8*piece), index(136))
//         }
//       }
//       for %w in 0..8 warp {
//         matmul_group %sums, %left[128*k0 + 16*w, 0], %right[64*k0, 0], 64
//       }
// ... 16 more lines
extern "C" __global__ void __launch_bounds__(384, 1) kernel_packed_dot_max(
    const tw_bfloat16 *__restrict__ x0, const tw_bfloat16 *__restrict__ x1, tw_bfloat16 *__restrict__ y0, long long R) {
  TW_DYNAMIC_SHARED(tw_bfloat16, left, 49152, 0);
  TW_DYNAMIC_SHARED(tw_bfloat16, right, 49152, 98304);
  TW_DYNAMIC_SHARED(unsigned long long, filled, 6, 196608);
  TW_DYNAMIC_SHARED(unsigned long long, emptied, 6, 196656);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < 6; ++stage) {
      tw_mbarrier_init(&filled[stage], 129);
      tw_mbarrier_init(&emptied[stage], 8);
    }
    tw_mbarrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= 256) {
    TW_REGISTERS_FEWER(96);
    int under_way = 0;  // rounds, of which more would not be known to have come
    int stage = 0, phase = 0;
    for (long long t0 = blockIdx.x; t0 < (R + 127) / 128 * 2; t0 += 132) {
      const long long panel = t0 / ((R + 127) / 128);
      const long long tile = t0 % ((R + 127) / 128);
      for (int k0 = 0; k0 < 3; ++k0) {
        tw_mbarrier_wait(&emptied[stage], phase ^ 1);
        if (threadIdx.x == 256) {
          tw_mbarrier_expect(&filled[stage], 16384);
          tw_bulk_load(&right[stage * 8192], &x1[panel * 24576 + k0 * 8192], 16384, &filled[stage]);
        }
        const int c = threadIdx.x - 256;
        #pragma unroll
        for (int i0 = 0; i0 < 8; ++i0) {
          const int row = i0 * 16 + c / 8;
          const int piece = c % 8;
          tw_copy_async_16_or_zero(&left[tw_swizzled(row + stage * 128, piece * 8, 8)], &x0[tw_min(R - 1, tile * 128 + row) * 136 + k0 * 64 + piece * 8], k0 * 64 + piece * 8 < 136);
        }
        tw_copy_async_commit();
        if (under_way < 4) ++under_way;
        else {
          tw_copy_async_wait(4);
          tw_async_proxy_fence();
          tw_mbarrier_arrive(&filled[(stage + 2) % 6]);
        }
        if (++stage == 6) { stage = 0; phase ^= 1; }
      }
    }
    for (int last = 0; last < 4; ++last) {
      tw_copy_async_commit();
      if (under_way < 4) ++under_way;
      else {
        tw_copy_async_wait(4);
        tw_async_proxy_fence();
        tw_mbarrier_arrive(&filled[(stage + 2) % 6]);
      }
      if (++stage == 6) { stage = 0; phase ^= 1; }
    }
    return;
  }
  TW_REGISTERS_MORE(200);
  int stage = 0, phase = 0;
  for (long long t0 = blockIdx.x; t0 < (R + 127) / 128 * 2; t0 += 132) {
    const long long panel = t0 / ((R + 127) / 128);
    const long long tile = t0 % ((R + 127) / 128);
    float sums[64];
    {
      #pragma unroll
      for (int v1 = 0; v1 < 64; ++v1) {
        sums[v1] = 0.0f;
      }
    }
    for (int k0 = 0; k0 < 3; ++k0) {
      tw_mbarrier_wait(&filled[stage], phase);
      tw_wgmma_fence();
      #pragma unroll
      for (int step = 0; step < 64; step += 16) {
        const unsigned long long from_left = tw_wgmma_left(&left[(stage * 128 + threadIdx.x / 128 * 64) * 64 + step]);
        const unsigned long long from_right = tw_wgmma_right(&right[(stage * 64 + step) * 128], 2048);
        tw_wgmma_m64n128k16_bf16(sums, from_left, from_right, 1);
      }
      tw_wgmma_commit();
      tw_wgmma_wait(1);
      if (k0 > 0 && threadIdx.x % 32 == 0) tw_mbarrier_arrive(&emptied[(stage + 5) % 6]);
      if (++stage == 6) { stage = 0; phase ^= 1; }
    }
    tw_wgmma_wait(0);
    if (threadIdx.x % 32 == 0) tw_mbarrier_arrive(&emptied[(stage + 5) % 6]);
    {
      const int w2 = threadIdx.x / 32;
      #pragma unroll
      for (int v2 = 0; v2 < 64; v2 += 2) {
        const int e1_row = v2 / 64 * 16 + v2 / 2 % 2 * 8 + threadIdx.x % 32 / 4;
        const int e1_column = v2 / 4 % 16 * 4 + threadIdx.x % 4;
        if (panel * 128 + e1_column * 2 < 240) {
          if (tile * 128 + e1_row + w2 * 16 < R) {
            __align__(16) tw_bfloat16 y0_3[2];
            #pragma unroll
            for (int pair = 0; pair < 2; ++pair) {
              y0_3[pair] = tw_to_bfloat16(tw_max(tw_round_bfloat16(sums[v2 + pair]), 0.0f));
            }
            tw_store_vector(&y0[panel * 128 + tile * 30720 + e1_column * 2 + e1_row * 240 + w2 * 3840], y0_3);
          }
        }
      }
    }
  }
}

int main() {
  char *data = read_file("model.data", 100864);
  char *constants = on_device(data, 98304);
  char *workspace = on_device(nullptr, 0 + 1);
  tw_failure *failure = (tw_failure *)on_device(nullptr, sizeof(tw_failure));
  char *input0 = on_device(data + 98304, 816);  // x
  char *output0 = on_device(nullptr, 1440);  // output0
  must(cudaFuncSetAttribute(kernel_packed_dot_max, cudaFuncAttributeMaxDynamicSharedMemorySize, 196736));
  kernel_packed_dot_max<<<2, 384, 196736>>>(
      (const tw_bfloat16 *)(input0),
      (const tw_bfloat16 *)(constants),
      (tw_bfloat16 *)(output0),
      3);
  must(cudaGetLastError());
  must(cudaDeviceSynchronize());
  int wrong = failed(failure);
  wrong += compare_bfloat16("output 0", output0, data + 99328, 720, 0.05);
  printf(wrong ? "FAILED\n" : "passed\n");
  return wrong != 0;
}
