#include "stages.cuh"

namespace mtadam::cuda {
namespace {

// The end of stage 1, unless the norms are there already (then `partial` is null), and stage 2. A block per row.
template <class S>
__global__ void __launch_bounds__(kThreads) balance_kernel(const __grid_constant__ S args) {
  const int64_t r = args.first + blockIdx.x;
  if (args.partial) fold_norms_row(args, r);
  if (!is_skipped(args)) balance_row(args, r);
}

}  // namespace

template <class S>
void balance(const S& args, int64_t, cudaStream_t stream) {
  launch_blocks(balance_kernel<S>, args.count, stream, args);
}

MTADAM_INSTANTIATE(balance)

}  // namespace mtadam::cuda
