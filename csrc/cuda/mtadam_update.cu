#include "stages.cuh"

namespace mtadam::cuda {
namespace {

// Stage 3, a block per chunk; from the end, because the gradients read last before are still in the cache.
template <class S>
__global__ void __launch_bounds__(kThreads, kUpdateBlocks<typename S::Arithmetic>)
    mtadam_update_kernel(const __grid_constant__ S slice) {
  mtadam_update_chunk(slice, chunk_of(slice, gridDim.x - 1 - blockIdx.x));
}

}  // namespace

template <class S>
void mtadam_update(const S& slice, int64_t chunks, cudaStream_t stream) {
  launch_blocks(mtadam_update_kernel<S>, chunks, stream, slice);
}

MTADAM_INSTANTIATE(mtadam_update)

}  // namespace mtadam::cuda
