#include "update_rows.cuh"

namespace mtadam::cuda {
namespace {

// V elements of one term: adds h_k to `combined`, advances the second moment, which is returned.
template <class G, class C, int V>
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
  store_pack(second, v);
  return v;
}

template <int V, class P, class G, class S, class C>
__device__ inline void update(Elements<V, P, G>, const S& slice, int64_t i, const RowStep<C>& row) {
  const Pack<C, V> param = load_pack<C, V>(element<const P>(slice.row[row.number].param, i));
  Pack<C, V> combined = {}, largest = {};
  for (int64_t k = 0; k < slice.terms; ++k) {
    const int64_t pair = k * slice.rows + row.number;
    if (!slice.second[pair]) continue;
    C* const second = element<C>(slice.second[pair], i);
    const C scale = row.direction * slice.scale[row.number * slice.terms + k];
    const int64_t grad = slice.grad(k, row.number);
    const Pack<C, V> v = grad ? add_term(element<const G>(grad, i), scale, param, second, combined, row)
                              : load_pack<C, V>(second);  // an absent term keeps its moments, and still bounds the step
    raise(largest, bound_of(slice, pair, i, v));
  }
  advance<P>(slice, i, row, param, combined, combined, largest);
}

// Stage 3, a block per chunk.
template <class S>
__global__ void __launch_bounds__(kThreads, kUpdateBlocks<typename S::Arithmetic>)
    mtadam_update_kernel(const __grid_constant__ S slice) {
  update_rows(slice, [&](auto elements, int64_t i, const auto& row) { update(elements, slice, i, row); });
}

}  // namespace

template <class S>
void mtadam_update(const S& slice, int64_t chunks, cudaStream_t stream) {
  launch_blocks(mtadam_update_kernel<S>, chunks, stream, slice);
}

MTADAM_INSTANTIATE(mtadam_update)

}  // namespace mtadam::cuda
