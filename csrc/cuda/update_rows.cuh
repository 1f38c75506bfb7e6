// What the updates of parameters share: a row's scalars, its elements among threads, and the end of a step.
#pragma once

#include "device.cuh"

namespace mtadam::cuda {

// Blocks of an update that fit a multiprocessor at once. Left to itself, ptxas makes room for more on sm_100, and
// spills registers.
template <class C>
constexpr int kUpdateBlocks = 16 / sizeof(C);

// Counts the step of a row that a term reaches, and computes its factors. One thread of a grid calls it.
template <class S>
__device__ inline void begin_row(const S& args, int64_t r) {
  const Group& g = args.group[args.row[r].group];
  if (args.has(kHasGrad, r)) args.steps[r] += 1;
  args.factors[r] = step_factors<typename S::Arithmetic>(g.lr, g.beta1, g.beta2, g.eps, g.decoupled_decay,
                                                         double(args.steps[r]), scale_of_grads(args));
}

// The types of V elements of a parameter and of its gradients.
template <int V, class P, class G>
struct Elements {};

// V elements of row r, from element i on: the parameter and its first moment. As stored, because a conversion would
// wait for the load.
template <class C, class P, int V>
struct State {
  int64_t r, i;
  Pack<P, V> stored;
  Pack<C, V> exp_avg;

  template <class S>
  static __device__ State read(const S& args, int64_t r, int64_t i) {
    return {r, i, Pack<P, V>::template read<Read::kLast>(element<const P>(args.row[r].param, i)),
            load_pack<C, V>(element<const C>(args.row[r].exp_avg, i))};
  }
  __device__ Pack<C, V> param() const { return convert<C>(stored); }
};

// If a term reaches the row, calls update(Elements<V, P, G>(), i, row) for every V elements, from element i on.
template <class S, class Update>
__device__ inline void update_chunk(const S& args, const Chunk& chunk, const Update& update) {
  using C = typename S::Arithmetic;
  if (!args.has(kHasGrad, chunk.row) || is_skipped(args)) return;
  const auto row = row_scalars(args.group[args.row[chunk.row].group], args.factors[chunk.row]);
  with_types(args, chunk.row, [&](auto param, auto grad) {
    for_vectors<kVector<C>>(args, chunk, [&](auto width, int64_t i) {
      update(Elements<decltype(width)::value, decltype(param), decltype(grad)>(), i, row);
    });
  });
}

template <class C, int V>
__device__ inline void max_into(Pack<C, V>& largest, const Pack<C, V>& by) {
#pragma unroll
  for (int j = 0; j < V; ++j) largest.at[j] = nan_max(largest.at[j], by.at[j]);
}

// Returns what bounds the step: a second moment, or its maximum so far where one is kept, which is raised first.
template <class S, class C, int V>
__device__ inline Pack<C, V> bound_of(const S& args, int64_t pair, int64_t i, Pack<C, V> exp_avg_sq) {
  if (!args.max_exp_avg_sq[pair]) return exp_avg_sq;
  C* const max_exp_avg_sq = element<C>(args.max_exp_avg_sq[pair], i);
  max_into(exp_avg_sq, load_pack<C, V>(max_exp_avg_sq));
  store_pack(max_exp_avg_sq, exp_avg_sq);
  return exp_avg_sq;
}

// Ends both updates: first moment, parameter, and the combined gradient where it is wanted.
template <class S, class C, class P, int V>
__device__ inline void advance(const S& args, const State<C, P, V>& state, const RowScalars<C>& row,
                               const Pack<C, V>& gradient, const Pack<C, V>& combined, const Pack<C, V>& largest) {
  Pack<C, V> exp_avg, param = state.param();
#pragma unroll
  for (int j = 0; j < V; ++j) {
    exp_avg.at[j] = first_moment(state.exp_avg.at[j], gradient.at[j], row.beta1, row.one_minus_beta1);
    param.at[j] = updated_param(param.at[j], exp_avg.at[j], largest.at[j], row.factors);
  }
  store_pack(element<C>(args.row[state.r].exp_avg, state.i), exp_avg);
  store_pack(element<P>(args.row[state.r].param, state.i), param);
  if (args.combined_of(state.r)) store_pack(element<P>(args.combined_of(state.r), state.i), combined);
}

}  // namespace mtadam::cuda
