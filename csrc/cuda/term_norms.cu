#include "stages.cuh"

namespace mtadam::cuda {
namespace {

// Stage 1, a block per chunk.
template <class S>
__global__ void __launch_bounds__(kThreads) term_norms_kernel(const __grid_constant__ S slice) {
  chunk_norms(slice, chunk_of(slice, blockIdx.x));
}

}  // namespace

template <class S>
void term_norms(const S& slice, int64_t chunks, cudaStream_t stream) {
  launch_blocks(term_norms_kernel<S>, chunks, stream, slice);
}

MTADAM_INSTANTIATE(term_norms)

}  // namespace mtadam::cuda
