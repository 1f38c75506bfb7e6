// Products of gradients over a chunk: squares for term_norms, squares and products of pairs for term_gram.
#pragma once

#include "reduce.cuh"

namespace mtadam::cuda {

// Which products of T terms with T terms are summed: their squares or each pair once, where both are the same; or all.
enum class Of { kSquares, kPairs, kAll };

template <int T, Of kOf>
constexpr int kProducts = kOf == Of::kSquares ? T
                          : kOf == Of::kPairs ? T * (T + 1) / 2
                                              : T * T;

// Adds the products of V elements of one tile's terms with those of another's, row after row.
template <Of kOf, int V, class C, class G, int T>
__device__ inline void add_products(const Tile<G, T>& rows, const Tile<G, T>& columns, int64_t i,
                                    C (&sums)[kProducts<T, kOf>]) {
  Pack<C, V> column[T];
#pragma unroll
  for (int j = 0; j < T; ++j) column[j] = columns.template load<C, V>(j, i);
  int n = 0;
#pragma unroll
  for (int k = 0; k < T; ++k) {
    const Pack<C, V> row = kOf == Of::kAll ? rows.template load<C, V>(k, i) : column[k];
#pragma unroll
    for (int j = kOf == Of::kSquares ? k : 0; j < (kOf == Of::kAll ? T : k + 1); ++j, ++n) {
#pragma unroll
      for (int v = 0; v < V; ++v) sums[n] += row.at[v] * column[j].at[v];
    }
  }
}

// The products of the T terms from `row` on with those from `column` on, summed over a chunk, the n-th to thread n.
template <int T, Of kOf, class S>
__device__ inline typename S::Arithmetic chunk_products(const S& slice, const Chunk& chunk, int64_t row,
                                                        int64_t column) {
  using C = typename S::Arithmetic;
  C sums[kProducts<T, kOf>] = {};
  with_grad_type(slice, chunk.row, [&](auto grad) {
    using G = decltype(grad);
    const Tile<G, T> rows(slice, chunk.row, row), columns(slice, chunk.row, column);
    constexpr int kWidth = kOf == Of::kSquares ? kVector<G> : kVector<C>;  // products of pairs have no registers left
    for_vectors<kWidth>(slice, chunk, [&](auto width, int64_t i) {
      add_products<kOf, decltype(width)::value>(rows, columns, i, sums);
    });
  });
  return block_sums(sums);
}

}  // namespace mtadam::cuda
