#include "update_rows.cuh"

namespace mtadam::cuda {
namespace {

// Counts the step, a thread per row.
template <class S>
__global__ void __launch_bounds__(kThreads) begin_kernel(const __grid_constant__ S args) {
  const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (i < args.count) begin_row(args, args.first + i);
}

// Terms whose gradients are in flight from memory at the same time.
constexpr int kTermsPerTile = 4;

template <int V, class P, class G, class S, class C>
__device__ inline void update(Elements<V, P, G>, const S& args, const State<C, V>& state, const RowScalars<C>& row) {
  C* const exp_avg_sq_at = element<C>(args.exp_avg_sq[state.r], state.i);
  Pack<C, V> exp_avg_sq = load_pack<C, V>(exp_avg_sq_at), combined = {}, gradient;
  const C* const weights = args.scale + state.r * args.terms;
  for (int64_t first = 0; first < args.terms; first += kTermsPerTile) {
    const Tile<G, kTermsPerTile> tile(args, state.r, first);
    Pack<C, V> g[kTermsPerTile];
#pragma unroll
    for (int k = 0; k < kTermsPerTile; ++k) g[k] = tile.template load<C, V>(k, state.i);
#pragma unroll
    for (int k = 0; k < kTermsPerTile; ++k) {
      const C weight = tile.grad[k] ? weights[first + k] : C(0);
#pragma unroll
      for (int j = 0; j < V; ++j) combined.at[j] = add_weighted(combined.at[j], g[k].at[j], weight);
    }
  }
#pragma unroll
  for (int j = 0; j < V; ++j) {
    gradient.at[j] = balanced_gradient(combined.at[j], row.grad_sign, state.param.at[j], row.l2_decay);
    exp_avg_sq.at[j] = second_moment(exp_avg_sq.at[j], gradient.at[j], row.beta2, row.one_minus_beta2);
  }
  store_pack(exp_avg_sq_at, exp_avg_sq);
  advance<P>(args, state, row, gradient, combined, bound_of(args, state.r, state.i, exp_avg_sq));
}

// The step, a block per chunk, from the end: the gradients that were read last are still in the cache.
template <class S>
__global__ void __launch_bounds__(kThreads, kUpdateBlocks<typename S::Arithmetic>)
    combined_adam_kernel(const __grid_constant__ S args) {
  const Chunk chunk = chunk_of(args, gridDim.x - 1 - blockIdx.x);
  update_chunk(args, chunk,
               [&](auto elements, const auto& state, const auto& row) { update(elements, args, state, row); });
}

}  // namespace

template <class S>
void combined_adam(const S& args, int64_t chunks, cudaStream_t stream) {
  launch_blocks(begin_kernel<S>, (args.count + kThreads - 1) / kThreads, stream, args);
  launch_blocks(combined_adam_kernel<S>, chunks, stream, args);
}

MTADAM_INSTANTIATE(combined_adam)

}  // namespace mtadam::cuda
