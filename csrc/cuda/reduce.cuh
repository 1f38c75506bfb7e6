// Sums over a block and over the chunks of a row, in an order that does not change from run to run.
#pragma once

#include "device.cuh"

namespace mtadam::cuda {

// The sums over all threads of N values, the n-th to thread n. All threads of the block take part, and there are
// Threads.
template <int Threads = kThreads, int N, class T>
__device__ inline T block_sums(const T (&values)[N]) {
  static_assert(N <= Threads, "a thread for each sum");
  __shared__ T of_warp[Threads / 32][N];
#pragma unroll
  for (int n = 0; n < N; ++n) {
    T value = values[n];
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xffffffffu, value, offset);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32][n] = value;
  }
  __syncthreads();
  T sum = T(0);
  if (threadIdx.x < N)
    for (int warp = 0; warp < Threads / 32; ++warp) sum += of_warp[warp][threadIdx.x];
  __syncthreads();  // before the next sums write of_warp
  return sum;
}

// Those of the partial sums [first, last) of a row's chunks that are among the first N, added up, the n-th to thread n
// of a block of Threads.
template <int N, int Threads = kThreads, class S>
__device__ inline double row_sums(const S& slice, int64_t r, int64_t first, int64_t last) {
  double sums[N] = {};
  for (int64_t c = slice.chunk_start[r] + threadIdx.x; c < slice.chunk_start[r + 1]; c += Threads) {
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (first + n < last) sums[n] += double(slice.partial_sum(first + n, c));
  }
  return block_sums<Threads>(sums);
}

}  // namespace mtadam::cuda
