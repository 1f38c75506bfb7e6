#include "stages.cuh"

namespace mtadam::cuda {
namespace {

// Counts the step, a thread per row.
template <class S>
__global__ void __launch_bounds__(kThreads) begin_kernel(const __grid_constant__ S args) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < args.count && !is_skipped(args)) begin_row(args, args.first + i);
}

// The update, a block per chunk, from the end: the gradients that were read last are still in the cache.
template <class S>
__global__ void __launch_bounds__(kThreads, kUpdateBlocks<typename S::Arithmetic>)
    combined_adam_kernel(const __grid_constant__ S args) {
  combined_adam_chunk(args, chunk_of(args, gridDim.x - 1 - blockIdx.x));
}

}  // namespace

template <class S>
void begin_step(const S& args, int64_t, cudaStream_t stream) {
  launch_blocks(begin_kernel<S>, (args.count + kThreads - 1) / kThreads, stream, args);
}

template <class S>
void combined_adam(const S& args, int64_t chunks, cudaStream_t stream) {
  launch_blocks(combined_adam_kernel<S>, chunks, stream, args);
}

MTADAM_INSTANTIATE(begin_step)
MTADAM_INSTANTIATE(combined_adam)

}  // namespace mtadam::cuda
