#include "reduce.cuh"
#include "update_rows.cuh"

namespace mtadam::cuda {
namespace {

// Terms whose sums are on their way from memory at the same time.
constexpr int kTile = 4;

// Stage 2, a block per row, a thread per term: norms from the chunks' sums, running norms, scales, and what the step
// multiplies by.
template <class S>
__global__ void __launch_bounds__(kThreads) balance_kernel(const __grid_constant__ S slice) {
  using C = typename S::Arithmetic;
  const int64_t r = slice.first + blockIdx.x, terms = slice.terms;
  const int64_t number = slice.row[r].group;
  const Group& g = slice.group[number];
  C* const norm = slice.norm + r * terms;
  C* const running = slice.running + r * terms;
  if (threadIdx.x == kThreads - 1) begin_row(slice, r);
  for (int64_t first = 0; first < terms; first += kTile) {
    const double sum = row_sums<kTile>(slice, r, first, terms);
    const int64_t k = first + threadIdx.x;
    if (threadIdx.x >= kTile || k >= terms) continue;
    norm[k] = slice.grad(k, r) ? C(std::sqrt(sum)) : C(float_of(0x7fc00000u));
    running[k] = running_norm(running[k], norm[k], C(g.beta3), g.first_nonzero != 0);
  }
  __syncthreads();
  const C anchor = anchor_of(terms, running);
  for (int64_t k = threadIdx.x; k < terms; k += kThreads)
    slice.scale[r * terms + k] = term_scale(running[k], anchor, C(slice.weight[number * terms + k]));
}

}  // namespace

template <class S>
void balance(const S& slice, int64_t, cudaStream_t stream) {
  launch_blocks(balance_kernel<S>, slice.count, stream, slice);
}

MTADAM_INSTANTIATE(balance)

}  // namespace mtadam::cuda
