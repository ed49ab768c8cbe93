// Kernels with one fault each, which the emulation finds (tests/test_cuda_device.py); and at the end some without.

#include "device.h"

extern "C" __global__ void race_of_stores(float *memory, const float *fixed) {
  TW_SHARED(float, tile, 64);
  tile[0] = fixed[threadIdx.x];
}

extern "C" __global__ void race_after_read(float *memory, const float *fixed) {
  TW_SHARED(float, tile, 64);
  tile[threadIdx.x] = 1.0f;
  __syncthreads();
  memory[threadIdx.x] = tile[63 - threadIdx.x];
  tile[threadIdx.x] = 2.0f;
}

extern "C" __global__ void race_within_a_warp(float *memory, const float *fixed) {
  TW_SHARED(float, tile, 32);
  tile[threadIdx.x] = 1.0f;
  __syncwarp();
  tile[threadIdx.x] = 2.0f;
  const float other = __shfl_xor_sync(~0u, tile[threadIdx.x], 1);
  memory[threadIdx.x] = other + tile[31 - threadIdx.x];
}

extern "C" __global__ void race_in_global_memory(float *memory, const float *fixed) {
  memory[threadIdx.x] = 1.0f;
  if (threadIdx.x > 0) memory[threadIdx.x] = memory[threadIdx.x - 1];
}

extern "C" __global__ void race_of_blocks(float *memory, const float *fixed) {
  if (threadIdx.x == 0) memory[0] = 1.0f;
}

extern "C" __global__ void uninitialised(float *memory, const float *fixed) {
  TW_SHARED(float, tile, 32);
  if (threadIdx.x < 16) tile[threadIdx.x] = 1.0f;
  memory[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void beyond_array(float *memory, const float *fixed) {
  memory[threadIdx.x + 33] = 1.0f;
}

extern "C" __global__ void before_array(float *memory, const float *fixed) {
  memory[threadIdx.x] = fixed[(int)threadIdx.x - 1000000];
}

extern "C" __global__ void beyond_shared(float *memory, const float *fixed) {
  TW_SHARED(float, tile, 32);
  tile[threadIdx.x] = 1.0f;
}

extern "C" __global__ void beyond_dynamic(float *memory, const float *fixed) {
  TW_DYNAMIC_SHARED(float, tile, 32, 0);
  tile[threadIdx.x] = 1.0f;
}

extern "C" __global__ void too_much_dynamic(float *memory, const float *fixed) {
  TW_DYNAMIC_SHARED(float, tile, 1000, 96);
  tile[threadIdx.x] = 1.0f;
}

extern "C" __global__ void missing_wait(float *memory, const float *fixed) {
  TW_SHARED(float, tile, 32);
  if (threadIdx.x < 8) tw_copy_async_16(&tile[4 * threadIdx.x], fixed + 4 * threadIdx.x);
  tw_copy_async_commit();
  memory[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void missing_barrier_after_wait(float *memory, const float *fixed) {
  TW_SHARED(float, tile, 32);
  if (threadIdx.x < 8) tw_copy_async_16(&tile[4 * threadIdx.x], fixed + 4 * threadIdx.x);
  tw_copy_async_commit();
  tw_copy_async_wait(0);
  memory[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void copy_over_what_is_read(float *memory, const float *fixed) {
  TW_SHARED(float, tile, 128);
  for (int i = 0; i < 4; ++i) tile[4 * threadIdx.x + i] = fixed[i];
  __syncthreads();
  memory[threadIdx.x] = tile[127 - threadIdx.x];
  tw_copy_async_16(&tile[4 * threadIdx.x], fixed);
  tw_copy_async_commit();
  tw_copy_async_wait(0);
}

extern "C" __global__ void no_wait_at_all(float *memory, const float *fixed) {
  TW_SHARED(float, tile, 128);
  tw_copy_async_16(&tile[4 * threadIdx.x], fixed);
  tw_copy_async_commit();
}

extern "C" __global__ void unaligned_copy(float *memory, const float *fixed) {
  TW_SHARED(float, tile, 128);
  tw_copy_async_16(&tile[4 * (threadIdx.x % 16) + 1], fixed);
  tw_copy_async_commit();
  tw_copy_async_wait(0);
}

extern "C" __global__ void unaligned_vector(float *memory, const float *fixed) {
  __align__(16) float own[4];
  tw_load_vector(own, fixed + 2);
  memory[threadIdx.x] = own[0];
}

extern "C" __global__ void vector_beyond_array(float *memory, const float *fixed) {
  __align__(16) float own[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  tw_store_vector(memory + 4 * threadIdx.x, own);
}

extern "C" __global__ void divergent_barrier(float *memory, const float *fixed) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    tw_barrier_sync(1, 64);
  }
}

extern "C" __global__ void divergent_shuffle(float *memory, const float *fixed) {
  if (threadIdx.x < 16) {
    memory[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
  } else {
    memory[threadIdx.x] = (float)__any_sync(~0u, 1);
  }
}

extern "C" __global__ void lane_outside_mask(float *memory, const float *fixed) {
  __syncwarp(1);
  memory[threadIdx.x] = 0.0f;
}

extern "C" __global__ void half_a_warp(float *memory, const float *fixed) {
  if (threadIdx.x < 16) {
    memory[threadIdx.x] = __shfl_xor_sync(~0u, 1.0f, 1);
  } else {
    __syncthreads();
  }
}

extern "C" __global__ void uneven_barrier(float *memory, const float *fixed) {
  tw_barrier_sync(2, 40);
}

extern "C" __global__ void stores_to_input(float *memory, const float *fixed) {
  ((float *)fixed)[threadIdx.x] = 1.0f;
}

extern "C" __global__ void missing_mbarrier_wait(float *memory, const float *fixed) {
  TW_DYNAMIC_SHARED(float, tile, 1024, 0);
  TW_DYNAMIC_SHARED(unsigned long long, barrier, 1, 4096);
  if (threadIdx.x == 0) tw_mbarrier_init(barrier, 1);
  tw_mbarrier_init_fence();
  __syncthreads();
  if (threadIdx.x == 0) {
    tw_mbarrier_expect(barrier, 128);
    tw_bulk_load(tile, fixed, 128, barrier);
  }
  memory[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void wrong_byte_count(float *memory, const float *fixed) {
  TW_DYNAMIC_SHARED(float, tile, 1024, 0);
  TW_DYNAMIC_SHARED(unsigned long long, barrier, 1, 4096);
  if (threadIdx.x == 0) tw_mbarrier_init(barrier, 1);
  tw_mbarrier_init_fence();
  __syncthreads();
  if (threadIdx.x == 0) {
    tw_mbarrier_expect(barrier, 256);
    tw_bulk_load(tile, fixed, 128, barrier);
  }
  tw_mbarrier_wait(barrier, 0);
  memory[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void too_many_arrivals(float *memory, const float *fixed) {
  TW_DYNAMIC_SHARED(float, tile, 1024, 0);
  TW_DYNAMIC_SHARED(unsigned long long, barrier, 1, 4096);
  if (threadIdx.x == 0) tw_mbarrier_init(barrier, 1);
  tw_mbarrier_init_fence();
  __syncthreads();
  tw_mbarrier_expect(barrier, 16);
  tw_mbarrier_wait(barrier, 0);
}

extern "C" __global__ void missing_proxy_fence(float *memory, const float *fixed) {
  TW_DYNAMIC_SHARED(float, tile, 2048, 0);
  for (int i = threadIdx.x; i < 2048; i += 128) tile[i] = 0.0f;
  __syncthreads();
  float sums[32];
  tw_wgmma_m64n64k16_f16(sums, tw_wgmma_left(tile), tw_wgmma_right(tile, 1024), 0);
  tw_wgmma_commit();
  tw_wgmma_wait(0);
  memory[threadIdx.x] = sums[0];
}

extern "C" __global__ void store_changed_under_way(float *memory, const float *fixed) {
  TW_DYNAMIC_SHARED(float, tile, 32, 0);
  tile[threadIdx.x] = 1.0f;
  tw_async_proxy_fence();
  __syncthreads();
  if (threadIdx.x == 0) {
    tw_bulk_store(memory, tile, 128);
    tw_bulk_commit();
    tile[0] = 2.0f;
    tw_bulk_wait_all();
  }
}

extern "C" __global__ void missing_wgmma_wait(float *memory, const float *fixed) {
  TW_DYNAMIC_SHARED(float, tile, 2048, 0);
  for (int i = threadIdx.x; i < 2048; i += 128) tile[i] = 0.0f;
  tw_async_proxy_fence();
  __syncthreads();
  float sums[32];
  tw_wgmma_m64n64k16_f16(sums, tw_wgmma_left(tile), tw_wgmma_right(tile, 1024), 0);
  tw_wgmma_commit();
}

extern "C" __global__ void copy_over_operand(float *memory, const float *fixed) {
  TW_DYNAMIC_SHARED(float, tile, 2048, 0);
  TW_DYNAMIC_SHARED(unsigned long long, barrier, 1, 8192);
  for (int i = threadIdx.x; i < 2048; i += 128) tile[i] = 0.0f;
  if (threadIdx.x == 0) tw_mbarrier_init(barrier, 1);
  tw_mbarrier_init_fence();
  tw_async_proxy_fence();
  __syncthreads();
  float sums[32];
  tw_wgmma_m64n64k16_f16(sums, tw_wgmma_left(tile), tw_wgmma_right(tile, 1024), 0);
  tw_wgmma_commit();
  if (threadIdx.x == 0) {
    tw_mbarrier_expect(barrier, 128);
    tw_bulk_load(tile, fixed, 128, barrier);
  }
  tw_wgmma_wait(0);
  tw_mbarrier_wait(barrier, 0);
}

extern "C" __global__ void no_fault(float *memory, const float *fixed) {
  TW_DYNAMIC_SHARED(float, tile, 64, 0);
  if (blockIdx.x > 0) return;
  tile[threadIdx.x] = fixed[threadIdx.x];
  __syncthreads();
  memory[threadIdx.x] = tile[63 - threadIdx.x];
}

extern "C" __global__ void some_return(float *memory, const float *fixed) {
  if (threadIdx.x < 32) return;
  __syncthreads();
  memory[threadIdx.x] = fixed[threadIdx.x];
}
