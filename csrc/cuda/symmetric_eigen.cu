#include "../rule_math.h"
#include "device.cuh"

namespace mtadam::cuda {
namespace {

constexpr int kEigenThreads = 32;  // a warp: it waits for itself only

__global__ void __launch_bounds__(kEigenThreads) symmetric_eigen_kernel(const __grid_constant__ EigenArgs args) {
  __shared__ double matrix[kMostRuleTerms * kMostRuleTerms], peaks[kMostRuleTerms];
  for (int64_t i = threadIdx.x; i < args.size * args.size; i += kEigenThreads) matrix[i] = args.matrix[i];
  __syncthreads();
  symmetric_eigen(args.size, matrix, peaks, args.value, args.vector, args.is_null, threadIdx.x, kEigenThreads,
                  [] { __syncthreads(); });
}

}  // namespace

void launch_rule(const EigenArgs& args, cudaStream_t stream) {
  launch(symmetric_eigen_kernel, 1, kEigenThreads, stream, args);
}

}  // namespace mtadam::cuda
