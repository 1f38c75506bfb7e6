#include "update_rows.cuh"

namespace mtadam::cuda {
namespace {

// Terms whose gradients and second moments are on their way from memory at the same time.
constexpr int kTile = 2;

// The second moments of a tile's terms: null where never reached or beyond the last term.
template <class C>
struct Moments {
  C* second[kTile];

  template <class S>
  __device__ Moments(const S& slice, int64_t r, int64_t first, int64_t i) {
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      const int64_t term = first + k;
      const int64_t address = term < slice.terms ? slice.second[term * slice.rows + r] : 0;
      second[k] = address ? element<C>(address, i) : nullptr;
    }
  }
};

// V elements of one term: adds h_k to `combined` and advances the second moment.
template <class C, int V>
__device__ inline void add_term(const Pack<C, V>& g, C scale, const Pack<C, V>& param, Pack<C, V>& second,
                                Pack<C, V>& combined, const RowStep<C>& row) {
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const C h = balanced_gradient(g.at[j], scale, param.at[j], row.l2_decay);
    combined.at[j] += h;
    second.at[j] = second_moment(second.at[j], h, row.beta2, row.one_minus_beta2);
  }
}

template <int V, class P, class G, class S, class C>
__device__ inline void update(Elements<V, P, G>, const S& slice, const State<C, V>& state, const RowStep<C>& row) {
  Pack<C, V> combined = {}, largest = {};
  for (int64_t first = 0; first < slice.terms; first += kTile) {
    const Tile<G, kTile> tile(slice, row.number, first);
    const Moments<C> at(slice, row.number, first, state.i);
    Pack<C, V> g[kTile], second[kTile] = {};
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      g[k] = tile.template load<C, V>(k, state.i);
      if (at.second[k]) second[k] = load_pack<C, V>(at.second[k]);
    }
#pragma unroll
    for (int k = 0; k < kTile; ++k) {
      if (!at.second[k]) continue;
      if (tile.grad[k]) {  // an absent term keeps its moments, and still bounds the step
        const C scale = row.direction * slice.scale[row.number * slice.terms + first + k];
        add_term(g[k], scale, state.param, second[k], combined, row);
        store_pack(at.second[k], second[k]);
      }
      raise(largest, bound_of(slice, (first + k) * slice.rows + row.number, state.i, second[k]));
    }
  }
  advance<P>(slice, state, row, combined, combined, largest);
}

// Stage 3, a block per chunk.
template <class S>
__global__ void __launch_bounds__(kThreads, kUpdateBlocks<typename S::Arithmetic>)
    mtadam_update_kernel(const __grid_constant__ S slice) {
  update_rows(slice, [&](auto elements, const auto& state, const auto& row) { update(elements, slice, state, row); });
}

}  // namespace

template <class S>
void mtadam_update(const S& slice, int64_t chunks, cudaStream_t stream) {
  launch_blocks(mtadam_update_kernel<S>, chunks, stream, slice);
}

MTADAM_INSTANTIATE(mtadam_update)

}  // namespace mtadam::cuda
