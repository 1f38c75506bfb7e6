// What the updates of parameters share: a row's scalars, its elements among threads, and the end of a step.
#pragma once

#include "device.cuh"

namespace mtadam::cuda {

// Blocks of an update that fit a multiprocessor at once. Left to itself, ptxas makes room for more on sm_100, and
// spills registers.
template <class C>
constexpr int kUpdateBlocks = 16 / sizeof(C);

// The scalars of a row.
template <class C>
struct RowStep {
  int64_t number;
  C direction, beta1, one_minus_beta1, beta2, one_minus_beta2, l2_decay;
  StepFactors<C> factors;
};

template <class S>
__device__ inline auto row_step(const S& slice, int64_t r) {
  using C = typename S::Arithmetic;
  const Group& g = slice.group[slice.row[r].group];
  return RowStep<C>{r,          C(g.direction),   C(g.beta1),    C(1.0 - g.beta1),
                    C(g.beta2), C(1.0 - g.beta2), C(g.l2_decay), slice.factors[r]};
}

// Counts the step of a row that a term reaches, and notes what it multiplies by; for one thread of a grid.
template <class S>
__device__ inline void begin_row(const S& slice, int64_t r) {
  const Group& g = slice.group[slice.row[r].group];
  if (slice.has(kReached, r)) slice.steps[r] += 1;
  slice.factors[r] =
      step_factors<typename S::Arithmetic>(g.lr, g.beta1, g.beta2, g.eps, g.decoupled_decay, double(slice.steps[r]));
}

// The types of V elements of a parameter and of its gradients.
template <int V, class P, class G>
struct Elements {};

// V elements of a parameter and of its first moment, from element i on.
template <class C, int V>
struct State {
  int64_t i;
  Pack<C, V> param, exp_avg;

  template <class P, class S>
  static __device__ State read(const S& slice, int64_t r, int64_t i) {
    return {i, load_pack<C, V>(element<const P>(slice.row[r].param, i)),
            load_pack<C, V>(element<const C>(slice.row[r].exp_avg, i))};
  }
};

// If a term reaches the row, calls update(Elements<V, P, G>(), state, row) for V elements after V elements.
template <class S, class Update>
__device__ inline void update_chunk(const S& slice, const Chunk& chunk, const Update& update) {
  using C = typename S::Arithmetic;
  if (!slice.has(kReached, chunk.row)) return;
  const auto row = row_step(slice, chunk.row);
  with_types(slice, chunk.row, [&](auto param, auto grad) {
    for_vectors<kVector<C>>(slice, chunk, [&](auto width, int64_t i) {
      constexpr int V = decltype(width)::value;
      using P = decltype(param);
      update(Elements<V, P, decltype(grad)>(), State<C, V>::template read<P>(slice, row.number, i), row);
    });
  });
}

template <class C, int V>
__device__ inline void raise(Pack<C, V>& largest, const Pack<C, V>& by) {
#pragma unroll
  for (int j = 0; j < V; ++j) largest.at[j] = larger(largest.at[j], by.at[j]);
}

// A second moment, or its maximum where one is kept, which is raised first: what bounds the step.
template <class S, class C, int V>
__device__ inline Pack<C, V> bound_of(const S& slice, int64_t pair, int64_t i, Pack<C, V> second) {
  if (!slice.maximum[pair]) return second;
  C* const maximum = element<C>(slice.maximum[pair], i);
  raise(second, load_pack<C, V>(maximum));
  store_pack(maximum, second);
  return second;
}

// What both updates end with: first moment, parameter, and the combined gradient where it is wanted.
template <class P, class S, class C, int V>
__device__ inline void advance(const S& slice, State<C, V> state, const RowStep<C>& row, const Pack<C, V>& gradient,
                               const Pack<C, V>& combined, const Pack<C, V>& largest) {
#pragma unroll
  for (int j = 0; j < V; ++j) {
    C& exp_avg = state.exp_avg.at[j];
    exp_avg = first_moment(exp_avg, gradient.at[j], row.beta1, row.one_minus_beta1);
    state.param.at[j] = updated_param(state.param.at[j], exp_avg, largest.at[j], row.factors);
  }
  store_pack(element<C>(slice.row[row.number].exp_avg, state.i), state.exp_avg);
  store_pack(element<P>(slice.row[row.number].param, state.i), state.param);
  if (slice.combined(row.number)) store_pack(element<P>(slice.combined(row.number), state.i), combined);
}

}  // namespace mtadam::cuda
