// The three stages of MTAdam for one block: sums over a chunk, scalars of a row, update of a chunk.
#pragma once

#include "products.cuh"
#include "update_rows.cuh"

namespace mtadam::cuda {

// Terms whose gradients, or sums, are in flight from memory at the same time.
constexpr int kTermsPerNormsTile = 4;

// Stage 1: the sum of squares of each term's gradient over the chunk.
template <class S>
__device__ inline void chunk_norms(const S& args, const Chunk& chunk) {
  if (!args.has(kHasGrad, chunk.row)) return;
  for (int64_t first = 0; first < args.terms; first += kTermsPerNormsTile) {
    const auto sum = chunk_products<kTermsPerNormsTile, Products::kSquares>(args, chunk, first, first);
    const int64_t k = first + threadIdx.x;
    if (threadIdx.x < kTermsPerNormsTile && k < args.terms) args.partial_sum(k, chunk.number) = sum;
  }
}

// The end of stage 1, once the sums of all chunks of a row are there: the row's norms.
template <class S>
__device__ inline void fold_norms_row(const S& args, int64_t r) {
  using C = typename S::Arithmetic;
  for (int64_t first = 0; first < args.terms; first += kTermsPerNormsTile) {
    const double sum = row_sums<kTermsPerNormsTile>(args, r, first, args.terms);
    const int64_t k = first + threadIdx.x;
    if (threadIdx.x < kTermsPerNormsTile && k < args.terms)
      args.norm[r * args.terms + k] = args.grad_of(k, r) ? C(std::sqrt(sum)) : C(float_of(0x7fc00000u));
  }
  __syncthreads();
}

// Stage 2, a thread per term: running norms and scales from norms, and the step's factors.
template <class S>
__device__ inline void balance_row(const S& args, int64_t r) {
  using C = typename S::Arithmetic;
  const int64_t terms = args.terms, number = args.row[r].group;
  const Group& g = args.group[number];
  const C* const norm = args.norm + r * terms;
  C* const norm_avg = args.norm_avg + r * terms;
  if (threadIdx.x == kThreads - 1) begin_row(args, r);
  for (int64_t k = threadIdx.x; k < terms; k += kThreads)
    norm_avg[k] = running_norm(norm_avg[k], norm[k], C(g.beta3), g.first_nonzero != 0);
  __syncthreads();
  const C anchor = anchor_of(terms, norm_avg);
  for (int64_t k = threadIdx.x; k < terms; k += kThreads)
    args.scale[r * terms + k] = term_scale(norm_avg[k], anchor, C(args.weight[number * terms + k]));
}

// Terms whose gradients and second moments are in flight from memory at the same time.
constexpr int kTermsPerUpdateTile = 2;

// The second moments of a tile's terms: null where never reached or beyond the last term.
template <class C>
struct Moments {
  C* exp_avg_sq[kTermsPerUpdateTile];

  template <class S>
  __device__ Moments(const S& args, int64_t r, int64_t first, int64_t i) {
#pragma unroll
    for (int k = 0; k < kTermsPerUpdateTile; ++k) {
      const int64_t term = first + k;
      const int64_t address = term < args.terms ? args.exp_avg_sq[term * args.rows + r] : 0;
      exp_avg_sq[k] = address ? element<C>(address, i) : nullptr;
    }
  }
};

template <int V, class P, class G, class S, class C>
__device__ inline void mtadam_update_elements(Elements<V, P, G>, const S& args, const State<C, V>& state,
                                              const RowScalars<C>& row) {
  Pack<C, V> combined = {}, largest = {};
  for (int64_t first = 0; first < args.terms; first += kTermsPerUpdateTile) {
    const Tile<G, kTermsPerUpdateTile> tile(args, state.r, first);
    const Moments<C> at(args, state.r, first, state.i);
    Pack<C, V> g[kTermsPerUpdateTile], exp_avg_sq[kTermsPerUpdateTile] = {};
#pragma unroll
    for (int k = 0; k < kTermsPerUpdateTile; ++k) {
      g[k] = tile.template load<C, V>(k, state.i);
      if (at.exp_avg_sq[k]) exp_avg_sq[k] = load_pack<C, V>(at.exp_avg_sq[k]);
    }
#pragma unroll
    for (int k = 0; k < kTermsPerUpdateTile; ++k) {
      if (!at.exp_avg_sq[k]) continue;
      if (tile.grad[k]) {  // an absent term keeps its moments, and still bounds the step
        const C scale = args.scale[state.r * args.terms + first + k];
#pragma unroll
        for (int j = 0; j < V; ++j)
          add_term(g[k].at[j], scale, state.param.at[j], row, exp_avg_sq[k].at[j], combined.at[j]);
        store_pack(at.exp_avg_sq[k], exp_avg_sq[k]);
      }
      max_into(largest, bound_of(args, (first + k) * args.rows + state.r, state.i, exp_avg_sq[k]));
    }
  }
  advance<P>(args, state, row, combined, combined, largest);
}

// Stage 3.
template <class S>
__device__ inline void mtadam_update_chunk(const S& args, const Chunk& chunk) {
  update_chunk(args, chunk, [&](auto elements, const auto& state, const auto& row) {
    mtadam_update_elements(elements, args, state, row);
  });
}

}  // namespace mtadam::cuda
