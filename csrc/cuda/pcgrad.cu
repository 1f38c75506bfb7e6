#include "../rule_math.h"
#include "device.cuh"

namespace mtadam::cuda {
namespace {

// One block, with a thread for each term.
__global__ void __launch_bounds__(kMostRuleTerms) pcgrad_kernel(const __grid_constant__ PCGradArgs args) {
  __shared__ double coefficients[kMostRuleTerms * kMostRuleTerms];  // [terms, terms]
  const int64_t k = threadIdx.x;
  if (k < args.terms) pcgrad_project(args.terms, k, args.seed, *args.step, args.gram, coefficients + k * args.terms);
  __syncthreads();
  if (k < args.terms)
    args.weight[k] = pcgrad_weight(args.terms, k, coefficients, args.preference, args.mean, args.gram);
  if (k == 0) *args.step += 1;
}

}  // namespace

void launch_rule(const PCGradArgs& args, cudaStream_t stream) {
  launch(pcgrad_kernel, 1, kMostRuleTerms, stream, args);
}

}  // namespace mtadam::cuda
