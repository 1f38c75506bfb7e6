// The stages of MTAdam and CombinedAdam for one block: sums over a chunk, scalars of a row, updates of a chunk.
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
      args.norm[r * args.terms + k] =
          args.grad_of(k, r) ? C(std::sqrt(sum) / scale_of_grads(args)) : C(bit_cast<float>(0x7fc00000u));
  }
}

// Stage 2, a thread per term: running norms and scales from norms, and the step's factors. Before it the end of stage
// 1, unless the norms are there already.
template <class S>
__device__ inline void balance_row(const S& args, int64_t r) {
  if (threadIdx.x == kThreads - 1) begin_row(args, r);  // at once, for it computes longest
  if (args.partial) fold_norms_row(args, r);
  __syncthreads();
  using C = typename S::Arithmetic;
  const int64_t terms = args.terms, number = args.row[r].group;
  const Group& g = args.group[number];
  const C* const norm = args.norm + r * terms;
  C* const norm_avg = args.norm_avg + r * terms;
  const C decay = norm_decay<C>(g.beta3, double(args.steps[r]), int64_t(g.norms));
  for (int64_t k = threadIdx.x; k < terms; k += kThreads)
    norm_avg[k] = running_norm(norm_avg[k], norm[k], decay, g.first_nonzero != 0, g.norms >= kPeak);
  __syncthreads();
  const C anchor = anchor_of(terms, norm_avg, int64_t(g.anchor));
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
__device__ inline void mtadam_update_elements(Elements<V, P, G>, const S& args, int64_t r, int64_t i,
                                              const RowScalars<C>& row) {
  State<C, P, V> state;
  Pack<C, V> combined = {}, largest = {};
  for (int64_t first = 0; first < args.terms; first += kTermsPerUpdateTile) {
    const Tile<G, kTermsPerUpdateTile, Read::kLast> tile(args, r, first);
    const Moments<C> at(args, r, first, i);
    Pack<G, V> g[kTermsPerUpdateTile];
    Pack<C, V> exp_avg_sq[kTermsPerUpdateTile];
#pragma unroll
    for (int k = 0; k < kTermsPerUpdateTile; ++k) {
      g[k] = tile.template read<V>(k, i);
      exp_avg_sq[k] = load_pack<C, V>(at.exp_avg_sq[k] ? at.exp_avg_sq[k] : reinterpret_cast<const C*>(kZeros));
    }
    if (first == 0) state = State<C, P, V>::read(args, r, i);  // else the first terms' loads would wait for it
#pragma unroll
    for (int k = 0; k < kTermsPerUpdateTile; ++k) {
      if (!at.exp_avg_sq[k]) continue;
      if (tile.grad[k]) {  // an absent term keeps its moments, and still bounds the step
        const C scale = args.scale[r * args.terms + first + k] * row.factors.unscale;
        const auto grad = convert<C>(g[k]), param = state.param();
#pragma unroll
        for (int j = 0; j < V; ++j) add_term(grad.at[j], scale, param.at[j], row, exp_avg_sq[k].at[j], combined.at[j]);
        store_pack(at.exp_avg_sq[k], exp_avg_sq[k]);
      }
      max_into(largest, bound_of(args, (first + k) * args.rows + r, i, exp_avg_sq[k]));
    }
  }
  advance(args, state, row, combined, combined, largest);
}

// Stage 3 with a second moment per term.
template <class S>
__device__ inline void mtadam_update_chunk(const S& args, const Chunk& chunk) {
  update_chunk(args, chunk, [&](auto elements, int64_t i, const auto& row) {
    mtadam_update_elements(elements, args, chunk.row, i, row);
  });
}

// Terms whose gradients are in flight from memory at the same time.
constexpr int kTermsPerSumTile = 4;

template <int V, class P, class G, class S, class C>
__device__ inline void combined_adam_elements(Elements<V, P, G>, const S& args, int64_t r, int64_t i,
                                              const RowScalars<C>& row) {
  const auto state = State<C, P, V>::read(args, r, i);
  C* const exp_avg_sq_at = element<C>(args.exp_avg_sq[state.r], state.i);
  Pack<C, V> exp_avg_sq = load_pack<C, V>(exp_avg_sq_at), combined = {}, gradient;
  const C* const weights = args.scale + state.r * args.terms;
  for (int64_t first = 0; first < args.terms; first += kTermsPerSumTile) {
    const Tile<G, kTermsPerSumTile, Read::kLast> tile(args, state.r, first);
    Pack<C, V> g[kTermsPerSumTile];
#pragma unroll
    for (int k = 0; k < kTermsPerSumTile; ++k) g[k] = tile.template load<C, V>(k, state.i);
#pragma unroll
    for (int k = 0; k < kTermsPerSumTile; ++k) {
      const C weight = tile.grad[k] ? weights[first + k] * row.factors.unscale : C(0);
#pragma unroll
      for (int j = 0; j < V; ++j) combined.at[j] = add_weighted(combined.at[j], g[k].at[j], weight);
    }
  }
  const auto param = state.param();
#pragma unroll
  for (int j = 0; j < V; ++j) {
    gradient.at[j] = balanced_gradient(combined.at[j], row.grad_sign, param.at[j], row.l2_decay);
    exp_avg_sq.at[j] = second_moment(exp_avg_sq.at[j], gradient.at[j], row.beta2, row.one_minus_beta2);
  }
  store_pack(exp_avg_sq_at, exp_avg_sq);
  advance(args, state, row, gradient, combined, bound_of(args, state.r, state.i, exp_avg_sq));
}

// Stage 3 with one second moment, and Adam's step on the weighted sum.
template <class S>
__device__ inline void combined_adam_chunk(const S& args, const Chunk& chunk) {
  update_chunk(args, chunk, [&](auto elements, int64_t i, const auto& row) {
    combined_adam_elements(elements, args, chunk.row, i, row);
  });
}

}  // namespace mtadam::cuda
