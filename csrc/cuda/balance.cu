#include "stages.cuh"

namespace mtadam::cuda {
namespace {

// A block per row.
template <class S>
__global__ void __launch_bounds__(kThreads) balance_kernel(const __grid_constant__ S args) {
  if (!is_skipped(args)) balance_row(args, args.first + blockIdx.x);
}

}  // namespace

template <class S>
void balance(const S& args, int64_t, cudaStream_t stream) {
  launch_blocks(balance_kernel<S>, args.count, stream, args);
}

MTADAM_INSTANTIATE(balance)

}  // namespace mtadam::cuda
