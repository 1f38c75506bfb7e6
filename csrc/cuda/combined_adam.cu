#include "update_rows.cuh"

namespace mtadam::cuda {
namespace {

// Counts the step, a thread per row.
template <class S>
__global__ void __launch_bounds__(kThreads) begin_kernel(const __grid_constant__ S slice) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < slice.count) begin_row(slice, slice.first + i);
}

// Terms whose gradients are on their way from memory at the same time.
constexpr int kTile = 4;

template <int V, class P, class G, class S, class C>
__device__ inline void update(Elements<V, P, G>, const S& slice, const State<C, V>& state, const RowStep<C>& row) {
  C* const second_at = element<C>(slice.second[row.number], state.i);
  Pack<C, V> second = load_pack<C, V>(second_at), combined = {}, gradient;
  const C* const weights = slice.scale + row.number * slice.terms;
  for (int64_t first = 0; first < slice.terms; first += kTile) {
    const Tile<G, kTile> tile(slice, row.number, first);
    Pack<C, V> g[kTile];
#pragma unroll
    for (int k = 0; k < kTile; ++k) g[k] = tile.template load<C, V>(k, state.i);
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      const C weight = tile.grad[k] ? weights[first + k] : C(0);
#pragma unroll
      for (int j = 0; j < V; ++j) combined.at[j] = add_weighted(combined.at[j], g[k].at[j], weight);
    }
  }
#pragma unroll
  for (int j = 0; j < V; ++j) {
    gradient.at[j] = balanced_gradient(combined.at[j], row.direction, state.param.at[j], row.l2_decay);
    second.at[j] = second_moment(second.at[j], gradient.at[j], row.beta2, row.one_minus_beta2);
  }
  store_pack(second_at, second);
  advance<P>(slice, state, row, gradient, combined, bound_of(slice, row.number, state.i, second));
}

// The step, a block per chunk; from the end, because the gradients read last before are still in the cache.
template <class S>
__global__ void __launch_bounds__(kThreads, kUpdateBlocks<typename S::Arithmetic>)
    combined_adam_kernel(const __grid_constant__ S slice) {
  const Chunk chunk = chunk_of(slice, gridDim.x - 1 - blockIdx.x);
  update_chunk(slice, chunk,
               [&](auto elements, const auto& state, const auto& row) { update(elements, slice, state, row); });
}

}  // namespace

template <class S>
void combined_adam(const S& slice, int64_t chunks, cudaStream_t stream) {
  launch_blocks(begin_kernel<S>, (slice.count + kThreads - 1) / kThreads, stream, slice);
  launch_blocks(combined_adam_kernel<S>, chunks, stream, slice);
}

MTADAM_INSTANTIATE(combined_adam)

}  // namespace mtadam::cuda
