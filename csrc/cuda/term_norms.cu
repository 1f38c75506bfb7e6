#include "stages.cuh"

namespace mtadam::cuda {
namespace {

// Blocks of term_norms that fit a multiprocessor at once. Left to itself, ptxas makes room for more, with registers for
// one load at a time.
template <class C>
constexpr int kNormsBlocks = sizeof(C) == 4 ? 6 : 4;

// Stage 1, a block per chunk.
template <class S>
__global__ void __launch_bounds__(kThreads, kNormsBlocks<typename S::Arithmetic>)
    term_norms_kernel(const __grid_constant__ S args) {
  chunk_norms(args, chunk_of(args, blockIdx.x));
}

// Its end, a block per row.
template <class S>
__global__ void __launch_bounds__(kThreads) fold_norms_kernel(const __grid_constant__ S args) {
  fold_norms_row(args, args.first + blockIdx.x);
}

}  // namespace

template <class S>
void term_norms(const S& args, int64_t chunks, cudaStream_t stream) {
  launch_blocks(term_norms_kernel<S>, chunks, stream, args);
}

template <class S>
void fold_norms(const S& args, int64_t, cudaStream_t stream) {
  launch_blocks(fold_norms_kernel<S>, args.count, stream, args);
}

MTADAM_INSTANTIATE(term_norms)
MTADAM_INSTANTIATE(fold_norms)

}  // namespace mtadam::cuda
