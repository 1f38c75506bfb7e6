// Sums over a block and over the chunks of a row, in an order that does not change from run to run.
#pragma once

#include "device.cuh"

namespace mtadam::cuda {

// Returns the sums of N values over the threads of a block of Threads, the n-th to thread n. All threads call it.
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

// Returns up to N of the partial sums [first, last) summed over a row's chunks, the n-th to thread n of a block of
// Threads.
template <int N, int Threads = kThreads, class S>
__device__ inline double row_sums(const S& args, int64_t r, int64_t first, int64_t last) {
  double sums[N] = {};
  for (int64_t c = args.chunk_start[r] + threadIdx.x; c < args.chunk_start[r + 1]; c += Threads) {
#pragma unroll
    for (int n = 0; n < N; ++n)
      if (first + n < last) sums[n] += args.partial_sum(first + n, c);
  }
  return block_sums<Threads>(sums);
}

}  // namespace mtadam::cuda
