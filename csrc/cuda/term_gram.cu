#include "products.cuh"

namespace mtadam::cuda {
namespace {

// Terms whose products a block sums together, in registers. Up to so many terms, each gradient is read once.
constexpr int kTermsPerTile = 4;

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

MTADAM_FN int64_t tiles_of(int64_t terms) { return (terms + kTermsPerTile - 1) / kTermsPerTile; }

// The products of the terms of two tiles, or of one tile, over a chunk.
template <Products kWhich, class S>
__device__ inline void tile_products(const S& args, const Chunk& chunk, const Pair& tile) {
  constexpr int T = kTermsPerTile;
  const auto sum = chunk_products<T, kWhich>(args, chunk, tile.k * T, tile.j * T);
  if (threadIdx.x >= kProducts<T, kWhich>) return;
  const Pair within = kWhich == Products::kPairs ? pair_of(threadIdx.x) : Pair{threadIdx.x / T, threadIdx.x % T};
  const Pair pair{tile.k * T + within.k, tile.j * T + within.j};
  if (pair.k < args.terms) args.partial_sum(number_of(pair), chunk.number) = sum;  // j is less
}

// A block per chunk, for the terms of one tile.
template <class S>
__global__ void __launch_bounds__(kThreads, 4) tile_gram_kernel(const __grid_constant__ S args) {
  const Chunk chunk = chunk_of(args, blockIdx.x);
  if (args.has(kHasGrad, chunk.row)) tile_products<Products::kPairs>(args, chunk, {0, 0});
}

// Blocks of term_gram that fit a multiprocessor at once; 0 leaves it to ptxas, which spills registers of doubles for
// it.
template <class C>
constexpr int kGramBlocks = sizeof(C) == 4 ? 0 : 1;

// A block per chunk and pair of tiles. Blocks of one chunk follow each other, so that most read it from the cache.
template <class S>
__global__ void __launch_bounds__(kThreads, kGramBlocks<typename S::Arithmetic>)
    term_gram_kernel(const __grid_constant__ S args) {
  const int64_t blocks = pairs_of(tiles_of(args.terms));
  const Chunk chunk = chunk_of(args, blockIdx.x / blocks);
  if (!args.has(kHasGrad, chunk.row)) return;
  const Pair tile = pair_of(blockIdx.x % blocks);
  if (tile.k == tile.j)
    tile_products<Products::kPairs>(args, chunk, tile);
  else
    tile_products<Products::kAll>(args, chunk, tile);
}

// Most rows have few chunks, and more small blocks run at the same time.
constexpr int kFoldThreads = 64;

// The sum of the chunks' products, a block per row and pair of terms.
template <class S>
__global__ void __launch_bounds__(kFoldThreads) fold_kernel(const __grid_constant__ S args) {
  const int64_t pairs = pairs_of(args.terms);
  const int64_t r = args.first + blockIdx.x / pairs;
  const int64_t number = blockIdx.x % pairs;
  const Pair pair = pair_of(number);
  const bool present = args.grad_of(pair.k, r) && args.grad_of(pair.j, r);  // the same for all threads of the block
  const double sum = present ? row_sums<1, kFoldThreads>(args, r, number, number + 1) : 0.0;
  if (threadIdx.x != 0) return;
  double* const gram = args.gram + r * args.terms * args.terms;
  gram[pair.k * args.terms + pair.j] = gram[pair.j * args.terms + pair.k] =
      sum / (scale_of_grads(args) * scale_of_grads(args));
}

}  // namespace

template <class S>
void term_gram(const S& args, int64_t chunks, cudaStream_t stream) {
  const int64_t tiles = tiles_of(args.terms);
  launch_blocks(tiles == 1 ? tile_gram_kernel<S> : term_gram_kernel<S>, chunks * pairs_of(tiles), stream, args);
  launch_blocks(fold_kernel<S>, args.count * pairs_of(args.terms), stream, args, kFoldThreads);
}

MTADAM_INSTANTIATE(term_gram)

}  // namespace mtadam::cuda
