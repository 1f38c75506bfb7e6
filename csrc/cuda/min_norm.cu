#include "../rule_math.h"
#include "device.cuh"

namespace mtadam::cuda {
namespace {

constexpr unsigned kSupports = 1u << kMostVectors;

// One block, with a thread for each support; that of the empty one fills in zeros where no other has a point.
__global__ void __launch_bounds__(kSupports) min_norm_kernel(const __grid_constant__ MinNormArgs args) {
  __shared__ UnitGram unit;
  __shared__ double squares[kSupports];
  __shared__ unsigned best[kSupports];
  const unsigned t = threadIdx.x;
  if (t < args.size) unit.fill_row(args.size, t, args.gram);
  __syncthreads();
  double weights[kMostVectors] = {};
  squares[t] = HUGE_VAL;
  if (0 < t && t < 1u << args.size) squares[t] = least_on_support(t, unit, weights);
  best[t] = t;
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t >= half) continue;
    const unsigned mine = best[t], other = best[t + half];
    if (squares[other] < squares[mine] || (squares[other] == squares[mine] && other < mine)) best[t] = other;
  }
  __syncthreads();
  if (t != best[0]) return;
#pragma unroll
  for (int k = 0; k < kMostVectors; ++k)
    if (k < args.size) args.weight[k] = weights[k];
}

}  // namespace

void launch_rule(const MinNormArgs& args, cudaStream_t stream) {
  launch(min_norm_kernel, 1, args.size > 5 ? 1u << args.size : 32u, stream, args);
}

}  // namespace mtadam::cuda
