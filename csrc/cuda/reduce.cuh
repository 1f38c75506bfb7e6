// Sums over a block, in an order that does not change from run to run.
#pragma once

#include "device.cuh"

namespace mtadam::cuda {

// The sum of every thread's value, to thread 0. All threads of the block take part.
template <class T>
__device__ inline T block_sum(T value) {
  __shared__ T of_warp[kThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  T sum = T(0);
  if (threadIdx.x == 0)
    for (int warp = 0; warp < kThreads / 32; ++warp) sum += of_warp[warp];
  __syncthreads();  // before the next sum writes of_warp
  return sum;
}

}  // namespace mtadam::cuda
