// The three stages of MTAdam for one block: sums over a chunk, scalars of a row, update of a chunk.
#pragma once

#include "products.cuh"
#include "update_rows.cuh"

namespace mtadam::cuda {

// Terms whose gradients, or sums, are on their way from memory at the same time.
constexpr int kNormsTile = 4;

// Stage 1: the sum of squares of each term's gradient over the chunk.
template <class S>
__device__ inline void chunk_norms(const S& slice, const Chunk& chunk) {
  if (!slice.has(kReached, chunk.row)) return;
  for (int64_t first = 0; first < slice.terms; first += kNormsTile) {
    const auto sum = chunk_products<kNormsTile, Of::kSquares>(slice, chunk, first, first);
    const int64_t k = first + threadIdx.x;
    if (threadIdx.x < kNormsTile && k < slice.terms) slice.partial_sum(k, chunk.number) = sum;
  }
}

// Its end, once the sums of all chunks of a row are there: the row's norms.
template <class S>
__device__ inline void fold_norms_row(const S& slice, int64_t r) {
  using C = typename S::Arithmetic;
  for (int64_t first = 0; first < slice.terms; first += kNormsTile) {
    const double sum = row_sums<kNormsTile>(slice, r, first, slice.terms);
    const int64_t k = first + threadIdx.x;
    if (threadIdx.x < kNormsTile && k < slice.terms)
      slice.norm[r * slice.terms + k] = slice.grad(k, r) ? C(std::sqrt(sum)) : C(float_of(0x7fc00000u));
  }
  __syncthreads();
}

// Stage 2, a thread per term: running norms and scales from norms, and what the step multiplies by.
template <class S>
__device__ inline void balance_row(const S& slice, int64_t r) {
  using C = typename S::Arithmetic;
  const int64_t terms = slice.terms, number = slice.row[r].group;
  const Group& g = slice.group[number];
  const C* const norm = slice.norm + r * terms;
  C* const running = slice.running + r * terms;
  if (threadIdx.x == kThreads - 1) begin_row(slice, r);
  for (int64_t k = threadIdx.x; k < terms; k += kThreads)
    running[k] = running_norm(running[k], norm[k], C(g.beta3), g.first_nonzero != 0);
  __syncthreads();
  const C anchor = anchor_of(terms, running);
  for (int64_t k = threadIdx.x; k < terms; k += kThreads)
    slice.scale[r * terms + k] = term_scale(running[k], anchor, C(slice.weight[number * terms + k]));
}

// Terms whose gradients and second moments are on their way from memory at the same time.
constexpr int kUpdateTile = 2;

// The second moments of a tile's terms: null where never reached or beyond the last term.
template <class C>
struct Moments {
  C* second[kUpdateTile];

  template <class S>
  __device__ Moments(const S& slice, int64_t r, int64_t first, int64_t i) {
#pragma unroll
    for (int k = 0; k < kUpdateTile; ++k) {
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
__device__ inline void mtadam_update_elements(Elements<V, P, G>, const S& slice, const State<C, V>& state,
                                              const RowStep<C>& row) {
  Pack<C, V> combined = {}, largest = {};
  for (int64_t first = 0; first < slice.terms; first += kUpdateTile) {
    const Tile<G, kUpdateTile> tile(slice, row.number, first);
    const Moments<C> at(slice, row.number, first, state.i);
    Pack<C, V> g[kUpdateTile], second[kUpdateTile] = {};
#pragma unroll
    for (int k = 0; k < kUpdateTile; ++k) {
      g[k] = tile.template load<C, V>(k, state.i);
      if (at.second[k]) second[k] = load_pack<C, V>(at.second[k]);
    }
#pragma unroll
    for (int k = 0; k < kUpdateTile; ++k) {
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

// Stage 3.
template <class S>
__device__ inline void mtadam_update_chunk(const S& slice, const Chunk& chunk) {
  update_chunk(slice, chunk, [&](auto elements, const auto& state, const auto& row) {
    mtadam_update_elements(elements, slice, state, row);
  });
}

}  // namespace mtadam::cuda
