#include "stages.cuh"

namespace mtadam::cuda {
namespace {

// Stage 3, a block per chunk, from the end: the gradients that stage 1 read last are still in the cache.
template <class S>
__global__ void __launch_bounds__(kThreads, kUpdateBlocks<typename S::Arithmetic>)
    mtadam_update_kernel(const __grid_constant__ S args) {
  mtadam_update_chunk(args, chunk_of(args, gridDim.x - 1 - blockIdx.x));
}

}  // namespace

template <class S>
void mtadam_update(const S& args, int64_t chunks, cudaStream_t stream) {
  launch_blocks(mtadam_update_kernel<S>, chunks, stream, args);
}

MTADAM_INSTANTIATE(mtadam_update)

}  // namespace mtadam::cuda
