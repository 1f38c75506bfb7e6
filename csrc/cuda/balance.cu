#include "reduce.cuh"
#include "update_rows.cuh"

namespace mtadam::cuda {
namespace {

// Stage 2, a block per row: norms from the chunks' sums, running norms, scales, and what the step multiplies by.
template <class S>
__global__ void __launch_bounds__(kThreads) balance_kernel(const __grid_constant__ S slice) {
  using C = typename S::Arithmetic;
  const int64_t r = slice.first + blockIdx.x;
  C* const norm = slice.norm + r * slice.terms;
  for (int64_t k = 0; k < slice.terms; ++k) {
    const bool present = slice.grad(k, r);  // the same for all threads of the block
    const double sum = present ? row_sum(slice, r, k) : 0.0;
    if (threadIdx.x == 0) norm[k] = present ? C(std::sqrt(sum)) : C(float_of(0x7fc00000u));
  }
  if (threadIdx.x != 0) return;
  const int64_t number = slice.row[r].group;
  const Group& g = slice.group[number];
  balance_row(slice.terms, norm, slice.weight + number * slice.terms, C(g.beta3), g.first_nonzero != 0,
              slice.running + r * slice.terms, slice.scale + r * slice.terms);
  begin_row(slice, r);
}

}  // namespace

template <class S>
void balance(const S& slice, int64_t, cudaStream_t stream) {
  launch_blocks(balance_kernel<S>, slice.count, stream, slice);
}

MTADAM_INSTANTIATE(balance)

}  // namespace mtadam::cuda
