#include "products.cuh"

namespace mtadam::cuda {
namespace {

// Stage 1, a block per chunk: the sum of squares of each term's gradient over the chunk.
template <class S>
__global__ void __launch_bounds__(kThreads) term_norms_kernel(const __grid_constant__ S slice) {
  const Chunk chunk = chunk_of(slice, blockIdx.x);
  for (int64_t k = 0; k < slice.terms; ++k) {
    if (!slice.grad(k, chunk.row)) continue;  // the same for all threads of the block
    const auto sum = chunk_products<1, true>(slice, chunk, k, k);
    if (threadIdx.x == 0) slice.partial_sum(k, chunk.number) = sum;
  }
}

}  // namespace

template <class S>
void term_norms(const S& slice, int64_t chunks, cudaStream_t stream) {
  launch_blocks(term_norms_kernel<S>, chunks, stream, slice);
}

MTADAM_INSTANTIATE(term_norms)

}  // namespace mtadam::cuda
