#include "reduce.cuh"

namespace mtadam::cuda {
namespace {

// Stage 2, a block per row: norms from the chunks' sums, running norms, scales, and what the step multiplies by.
template <class C>
__global__ void __launch_bounds__(kThreads) balance_kernel(const __grid_constant__ Slice<C> slice) {
  const int64_t r = slice.first + blockIdx.x;
  const int64_t terms = slice.terms;
  for (int64_t k = 0; k < terms; ++k) {
    double sum = 0;
    if (slice.grad(k, r))
      for (int64_t c = slice.chunk_start[r] + threadIdx.x; c < slice.chunk_start[r + 1]; c += kThreads)
        sum += double(slice.partial[c * terms + k]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) slice.norm[r * terms + k] = slice.grad(k, r) ? C(std::sqrt(sum)) : C(float_of(0x7fc00000u));
  }
  if (threadIdx.x != 0) return;
  const int64_t number = slice.row[r].group;
  const Group& g = slice.group[number];
  balance_row(terms, slice.norm + r * terms, slice.weight + number * terms, C(g.beta3), g.first_nonzero != 0,
              slice.running + r * terms, slice.scale + r * terms);
  if (slice.is_reached(r)) slice.steps[r] += 1;
  slice.factors[r] = step_factors<C>(g.lr, g.beta1, g.beta2, g.eps, g.decoupled_decay, double(slice.steps[r]));
}

}  // namespace

template <class C>
void balance(const Slice<C>& slice, unsigned blocks, cudaStream_t stream) {
  launch(balance_kernel<C>, blocks, kThreads, stream, slice);
}

template void balance(const Slice<double>&, unsigned, cudaStream_t);
template void balance(const Slice<float>&, unsigned, cudaStream_t);

}  // namespace mtadam::cuda
