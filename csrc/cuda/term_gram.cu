#include "products.cuh"

namespace mtadam::cuda {
namespace {

// Terms whose products a block takes together, in registers: up to so many terms the gradients are read once.
template <class C>
constexpr int kTile = 24 / sizeof(C);

// Instead, up to so many terms: fewer registers.
constexpr int kSmallTile = 4;

struct Pair {
  int64_t k, j;
};

// The n-th of the pairs (0, 0), (1, 0), (1, 1), (2, 0), ..., and the number of a pair.
MTADAM_FN Pair pair_of(int64_t n) {
  int64_t k = 0;
  while (n > k) n -= ++k;
  return {k, n};
}
MTADAM_FN int64_t number_of(const Pair& pair) { return pair.k * (pair.k + 1) / 2 + pair.j; }

MTADAM_FN int64_t pairs_of(int64_t n) { return n * (n + 1) / 2; }

template <int T>
MTADAM_FN int64_t tiles_of(int64_t terms) {
  return (terms + T - 1) / T;
}

// The products of the terms within each tile, a block per chunk and tile, or else of those of two tiles, a block per
// chunk and pair of tiles. Blocks of one chunk follow each other, so that most read it from the cache. Not asked for
// one block at least, ptxas spills registers to make room for more.
template <int T, Of kOf, class S>
__global__ void __launch_bounds__(kThreads, 1) term_gram_kernel(const __grid_constant__ S slice) {
  const int64_t tiles = tiles_of<T>(slice.terms);
  const int64_t blocks = kOf == Of::kPairs ? tiles : pairs_of(tiles - 1);
  const Chunk chunk = chunk_of(slice, blockIdx.x / blocks);
  if (!slice.has(kReached, chunk.row)) return;
  const int64_t block = blockIdx.x % blocks;
  const Pair tile = kOf == Of::kPairs ? Pair{block, block} : Pair{pair_of(block).k + 1, pair_of(block).j};
  const auto sum = chunk_products<T, kOf>(slice, chunk, tile.k * T, tile.j * T);
  if (threadIdx.x >= kProducts<T, kOf>) return;
  const Pair within = kOf == Of::kPairs ? pair_of(threadIdx.x) : Pair{threadIdx.x / T, threadIdx.x % T};
  const Pair pair{tile.k * T + within.k, tile.j * T + within.j};
  if (pair.k < slice.terms) slice.partial_sum(number_of(pair), chunk.number) = sum;  // j is less
}

// Most rows have few chunks; of small blocks more run at the same time.
constexpr int kFoldThreads = 64;

// The sum of the chunks' products, a block per row and pair of terms.
template <class S>
__global__ void __launch_bounds__(kFoldThreads) fold_kernel(const __grid_constant__ S slice) {
  const int64_t pairs = pairs_of(slice.terms);
  const int64_t r = slice.first + blockIdx.x / pairs;
  const int64_t number = blockIdx.x % pairs;
  const Pair pair = pair_of(number);
  const bool present = slice.grad(pair.k, r) && slice.grad(pair.j, r);  // the same for all threads of the block
  const double sum = present ? row_sums<1, kFoldThreads>(slice, r, number, number + 1) : 0.0;
  if (threadIdx.x != 0) return;
  double* const gram = slice.gram + r * slice.terms * slice.terms;
  gram[pair.k * slice.terms + pair.j] = gram[pair.j * slice.terms + pair.k] = sum;
}

}  // namespace

template <class S>
void term_gram(const S& slice, int64_t chunks, cudaStream_t stream) {
  if (slice.terms <= kSmallTile) {
    launch_blocks(term_gram_kernel<kSmallTile, Of::kPairs, S>, chunks, stream, slice);
  } else {
    constexpr int T = kTile<typename S::Arithmetic>;
    const int64_t tiles = tiles_of<T>(slice.terms);
    launch_blocks(term_gram_kernel<T, Of::kPairs, S>, chunks * tiles, stream, slice);
    launch_blocks(term_gram_kernel<T, Of::kAll, S>, chunks * pairs_of(tiles - 1), stream, slice);
  }
  launch_blocks(fold_kernel<S>, slice.count * pairs_of(slice.terms), stream, slice, kFoldThreads);
}

MTADAM_INSTANTIATE(term_gram)

}  // namespace mtadam::cuda
