// Products of gradients over a chunk: squares for term_norms, squares and products of pairs for term_gram.
#pragma once

#include "reduce.cuh"

namespace mtadam::cuda {

// The products of T terms with T terms to sum: their squares, or each pair once, where both are the same; or all.
enum class Products { kSquares, kPairs, kAll };

template <int T, Products kWhich>
constexpr int kProducts = kWhich == Products::kSquares ? T
                          : kWhich == Products::kPairs ? T * (T + 1) / 2
                                                       : T * T;

// What a block sums products of gradients of arithmetic type C in. As float, those of pairs, which rules divide by each
// other, would overflow for large gradients and vanish for small ones.
template <class C, Products kWhich>
using SumType = std::conditional_t<kWhich == Products::kSquares, C, double>;

// Adds the products of V elements of one tile's terms with those of another's, row after row. All loads come first, and
// elements are converted one by one, which takes few registers.
template <Products kWhich, int V, class A, class G, int T>
__device__ inline void add_products(const Tile<G, T, Read::kFirst>& rows, const Tile<G, T, Read::kFirst>& columns,
                                    int64_t i, A (&sums)[kProducts<T, kWhich>]) {
  Pack<G, V> column[T], row[T];
#pragma unroll
  for (int k = 0; k < T; ++k) {
    column[k] = columns.template read<V>(k, i);
    row[k] = kWhich == Products::kAll ? rows.template read<V>(k, i) : column[k];
  }
#pragma unroll
  for (int v = 0; v < V; ++v) {
    int n = 0;
#pragma unroll
    for (int k = 0; k < T; ++k) {
#pragma unroll
      for (int j = kWhich == Products::kSquares ? k : 0; j < (kWhich == Products::kAll ? T : k + 1); ++j, ++n)
        sums[n] += A(load(row[k].at[v])) * A(load(column[j].at[v]));
    }
  }
}

// The products of the T terms from `row` on with those from `column` on, summed over a chunk, the n-th to thread n.
template <int T, Products kWhich, class S>
__device__ inline auto chunk_products(const S& args, const Chunk& chunk, int64_t row, int64_t column) {
  using C = typename S::Arithmetic;
  SumType<C, kWhich> sums[kProducts<T, kWhich>] = {};
  with_grad_type(args, chunk.row, [&](auto grad) {
    using G = decltype(grad);
    const Tile<G, T, Read::kFirst> rows(args, chunk.row, row), columns(args, chunk.row, column);
    for_vectors<kVector<G>>(args, chunk, [&](auto width, int64_t i) {
      add_products<kWhich, decltype(width)::value>(rows, columns, i, sums);
    });
  });
  return block_sums(sums);
}

}  // namespace mtadam::cuda
