// Products of gradients over a chunk: squares for term_norms, squares and products of pairs for term_gram.
#pragma once

#include "reduce.cuh"

namespace mtadam::cuda {

// Products of T terms with T terms: all, or if both are the same, each pair once.
template <int T, bool kSame>
constexpr int kProducts = kSame ? T * (T + 1) / 2 : T * T;

// Adds the products of V elements of one tile's terms with those of another's, row after row.
template <bool kSame, int V, class C, class G, int T>
__device__ inline void add_products(const Tile<G, T>& rows, const Tile<G, T>& columns, int64_t i,
                                    C (&sums)[kProducts<T, kSame>]) {
  Pack<C, V> column[T];
#pragma unroll
  for (int j = 0; j < T; ++j) column[j] = columns.template load<C, V>(j, i);
  int n = 0;
#pragma unroll
  for (int k = 0; k < T; ++k) {
    const Pack<C, V> row = kSame ? column[k] : rows.template load<C, V>(k, i);
#pragma unroll
    for (int j = 0; j < (kSame ? k + 1 : T); ++j, ++n) {
#pragma unroll
      for (int v = 0; v < V; ++v) sums[n] += row.at[v] * column[j].at[v];
    }
  }
}

// The products of the T terms from `row` on with those from `column` on, summed over a chunk, the n-th to thread n.
template <int T, bool kSame, class S>
__device__ inline typename S::Arithmetic chunk_products(const S& slice, const Chunk& chunk, int64_t row,
                                                        int64_t column) {
  using C = typename S::Arithmetic;
  C sums[kProducts<T, kSame>] = {};
  with_grad_type(slice, chunk.row, [&](auto grad) {
    const Tile<decltype(grad), T> rows(slice, chunk.row, row), columns(slice, chunk.row, column);
    for_vectors<kVector<C>>(slice, chunk, [&](auto width, int64_t i) {
      add_products<kSame, decltype(width)::value>(rows, columns, i, sums);
    });
  });
  return block_sums(sums);
}

}  // namespace mtadam::cuda
