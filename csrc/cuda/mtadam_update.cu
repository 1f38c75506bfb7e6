#include "device.cuh"

namespace mtadam::cuda {
namespace {

// The scalars of a row.
template <class C>
struct RowStep {
  C direction, beta1, one_minus_beta1, beta2, one_minus_beta2, l2_decay;
  StepFactors<C> factors;
};

template <class C>
__device__ inline RowStep<C> row_step(const Slice<C>& slice, int64_t r) {
  const Group& g = slice.group[slice.row[r].group];
  return {C(g.direction), C(g.beta1), C(1.0 - g.beta1), C(g.beta2), C(1.0 - g.beta2), C(g.l2_decay), slice.factors[r]};
}

// V elements of one term: adds h_k to `combined`, advances the second moment, which is returned.
template <int V, class G, class C>
__device__ inline Pack<C, V> add_term(const G* grad, C scale, const Pack<C, V>& param, C* second, Pack<C, V>& combined,
                                      const RowStep<C>& row) {
  const Pack<C, V> g = load_pack<C, V>(grad);
  Pack<C, V> v = load_pack<C, V>(second);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    const C h = balanced_gradient(g.at[j], scale, param.at[j], row.l2_decay);
    combined.at[j] += h;
    v.at[j] = second_moment(v.at[j], h, row.beta2, row.one_minus_beta2);
  }
  store_pack<V>(second, v);
  return v;
}

template <int V, class C>
__device__ inline void raise(Pack<C, V>& largest, const Pack<C, V>& by) {
#pragma unroll
  for (int j = 0; j < V; ++j) largest.at[j] = larger(largest.at[j], by.at[j]);
}

// Stage 3 of the V elements from i on.
template <int V, class P, class C>
__device__ inline void update(const Slice<C>& slice, int64_t r, int64_t i, const RowStep<C>& row) {
  P* const param_at = element<P>(slice.row[r].param, i);
  const Pack<C, V> param = load_pack<C, V>(param_at);
  Pack<C, V> combined = {}, largest = {};
  for (int64_t k = 0; k < slice.terms; ++k) {
    const int64_t pair = k * slice.rows + r;
    if (!slice.second[pair]) continue;
    C* const second = element<C>(slice.second[pair], i);
    const C scale = row.direction * slice.scale[r * slice.terms + k];
    const int64_t grad = slice.grad(k, r);
    Pack<C, V> bound;
    if (!grad)  // an absent term keeps its moments, and still bounds the step
      bound = load_pack<C, V>(second);
    else if (grad & kWide)
      bound = add_term<V>(element<const float>(grad & ~kWide, i), scale, param, second, combined, row);
    else
      bound = add_term<V>(element<const P>(grad, i), scale, param, second, combined, row);
    if (slice.maximum[pair]) {
      C* const maximum = element<C>(slice.maximum[pair], i);
      raise(bound, load_pack<C, V>(maximum));
      store_pack<V>(maximum, bound);
    }
    raise(largest, bound);
  }
  C* const exp_avg_at = element<C>(slice.row[r].exp_avg, i);
  Pack<C, V> exp_avg = load_pack<C, V>(exp_avg_at), updated;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    exp_avg.at[j] = first_moment(exp_avg.at[j], combined.at[j], row.beta1, row.one_minus_beta1);
    updated.at[j] = updated_param(param.at[j], exp_avg.at[j], largest.at[j], row.factors);
  }
  store_pack<V>(exp_avg_at, exp_avg);
  store_pack<V>(param_at, updated);
  if (slice.combined(r)) store_pack<V>(element<P>(slice.combined(r), i), combined);
}

template <class C>
__device__ inline bool row_is_aligned(const Slice<C>& slice, int64_t r) {
  bool aligned = is_aligned(slice.row[r].param) && is_aligned(slice.row[r].exp_avg) && is_aligned(slice.combined(r));
  for (int64_t k = 0; k < slice.terms; ++k)
    aligned = aligned && is_aligned(slice.grad(k, r)) && is_aligned(slice.second[k * slice.rows + r]) &&
              is_aligned(slice.maximum[k * slice.rows + r]);
  return aligned;
}

template <class P, class C>
__device__ inline void update_chunk(const Slice<C>& slice, const Chunk& chunk, bool aligned) {
  const RowStep<C> row = row_step(slice, chunk.row);
  const int64_t tail = aligned ? chunk.end - (chunk.end - chunk.begin) % kVector : chunk.begin;
  for (int64_t i = chunk.begin + threadIdx.x * kVector; i < tail; i += kThreads * kVector)
    update<kVector, P>(slice, chunk.row, i, row);
  for (int64_t i = tail + threadIdx.x; i < chunk.end; i += kThreads) update<1, P>(slice, chunk.row, i, row);
}

__device__ inline void update_chunk(const Slice<double>& slice, const Chunk& chunk, bool aligned) {
  update_chunk<double>(slice, chunk, aligned);
}

__device__ inline void update_chunk(const Slice<float>& slice, const Chunk& chunk, bool aligned) {
  switch (slice.row[chunk.row].param_type) {
    case kBFloat16:
      return update_chunk<BFloat16>(slice, chunk, aligned);
    case kFloat16:
      return update_chunk<Half>(slice, chunk, aligned);
    default:
      return update_chunk<float>(slice, chunk, aligned);
  }
}

// Stage 3, a block per chunk.
template <class C>
__global__ void __launch_bounds__(kThreads) mtadam_update_kernel(const __grid_constant__ Slice<C> slice) {
  const Chunk chunk = chunk_of(slice, blockIdx.x);
  if (!slice.is_reached(chunk.row)) return;
  __shared__ bool aligned;
  if (threadIdx.x == 0) aligned = row_is_aligned(slice, chunk.row);
  __syncthreads();
  update_chunk(slice, chunk, aligned);
}

}  // namespace

template <class C>
void mtadam_update(const Slice<C>& slice, unsigned blocks, cudaStream_t stream) {
  launch(mtadam_update_kernel<C>, blocks, kThreads, stream, slice);
}

template void mtadam_update(const Slice<double>&, unsigned, cudaStream_t);
template void mtadam_update(const Slice<float>&, unsigned, cudaStream_t);

}  // namespace mtadam::cuda
