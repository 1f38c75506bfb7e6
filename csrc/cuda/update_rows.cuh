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
  if (slice.is_reached(r)) slice.steps[r] += 1;
  slice.factors[r] =
      step_factors<typename S::Arithmetic>(g.lr, g.beta1, g.beta2, g.eps, g.decoupled_decay, double(slice.steps[r]));
}

template <class S>
__device__ inline bool row_is_aligned(const S& slice, int64_t r) {
  bool aligned = is_aligned(slice.row[r].param) && is_aligned(slice.row[r].exp_avg) && is_aligned(slice.combined(r));
  for (int64_t k = 0; k < slice.terms; ++k) aligned = aligned && is_aligned(slice.grad(k, r));
  for (int64_t k = 0; k < slice.moments; ++k)
    aligned = aligned && is_aligned(slice.second[k * slice.rows + r]) && is_aligned(slice.maximum[k * slice.rows + r]);
  return aligned;
}

// V elements of a parameter of type P with gradients of type G.
template <int V, class P, class G>
struct Elements {};

// The block's chunk of a row that a term reaches: calls update(Elements<V, P, G>(), i, row) for V elements from i on.
template <class S, class Update>
__device__ inline void update_rows(const S& slice, const Update& update) {
  const Chunk chunk = chunk_of(slice, blockIdx.x);
  if (!slice.is_reached(chunk.row)) return;
  __shared__ bool aligned;
  if (threadIdx.x == 0) aligned = row_is_aligned(slice, chunk.row);
  __syncthreads();
  const auto row = row_step(slice, chunk.row);
  with_types(slice, chunk.row, [&](auto param, auto grad) {
    for_vectors(chunk, aligned, [&](auto width, int64_t i) {
      update(Elements<decltype(width)::value, decltype(param), decltype(grad)>(), i, row);
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
__device__ inline void advance(const S& slice, int64_t i, const RowStep<C>& row, const Pack<C, V>& param,
                               const Pack<C, V>& gradient, const Pack<C, V>& combined, const Pack<C, V>& largest) {
  C* const exp_avg_at = element<C>(slice.row[row.number].exp_avg, i);
  Pack<C, V> exp_avg = load_pack<C, V>(exp_avg_at), updated;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    exp_avg.at[j] = first_moment(exp_avg.at[j], gradient.at[j], row.beta1, row.one_minus_beta1);
    updated.at[j] = updated_param(param.at[j], exp_avg.at[j], largest.at[j], row.factors);
  }
  store_pack(exp_avg_at, exp_avg);
  store_pack(element<P>(slice.row[row.number].param, i), updated);
  if (slice.combined(row.number)) store_pack(element<P>(slice.combined(row.number), i), combined);
}

}  // namespace mtadam::cuda
