#include "stages.cuh"

namespace mtadam::cuda {
namespace {

// The end of stage 1, unless the norms are there already (then there are no sums), and stage 2. A block per row.
template <class S>
__global__ void __launch_bounds__(kThreads) balance_kernel(const __grid_constant__ S slice) {
  const int64_t r = slice.first + blockIdx.x;
  if (slice.partial) fold_norms_row(slice, r);
  balance_row(slice, r);
}

}  // namespace

template <class S>
void balance(const S& slice, int64_t, cudaStream_t stream) {
  launch_blocks(balance_kernel<S>, slice.count, stream, slice);
}

MTADAM_INSTANTIATE(balance)

}  // namespace mtadam::cuda
