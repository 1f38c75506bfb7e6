#include "stages.cuh"

namespace mtadam::cuda {
namespace {

// Stage 2, a block per row.
template <class S>
__global__ void __launch_bounds__(kThreads) balance_kernel(const __grid_constant__ S slice) {
  balance_row(slice, slice.first + blockIdx.x);
}

}  // namespace

template <class S>
void balance(const S& slice, int64_t, cudaStream_t stream) {
  launch_blocks(balance_kernel<S>, slice.count, stream, slice);
}

MTADAM_INSTANTIATE(balance)

}  // namespace mtadam::cuda
