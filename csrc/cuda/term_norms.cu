#include "reduce.cuh"

namespace mtadam::cuda {
namespace {

// Terms whose gradients are on their way from memory at the same time.
constexpr int kTile = 4;
// Stage 1, a block per chunk: the sum of squares of each term's gradient over the chunk.
template <class S>
__global__ void __launch_bounds__(kThreads) term_norms_kernel(const __grid_constant__ S slice) {
  using C = typename S::Arithmetic;
  const Chunk chunk = chunk_of(slice, blockIdx.x);
  for (int64_t first = 0; first < slice.terms; first += kTile) {
    C sums[kTile] = {};
    with_grad_type(slice, chunk.row, [&](auto grad) {
      using G = decltype(grad);
      const Tile<G, kTile> tile(slice, chunk.row, first);
      for_vectors<kVector<G>>(slice, chunk, [&](auto width, int64_t i) {
        constexpr int V = decltype(width)::value;
        Pack<C, V> g[kTile];
#pragma unroll
        for (int k = 0; k < kTile; ++k) g[k] = tile.template load<C, V>(k, i);
#pragma unroll
        for (int k = 0; k < kTile; ++k) {
#pragma unroll
          for (int v = 0; v < V; ++v) sums[k] += g[k].at[v] * g[k].at[v];
        }
      });
    });
    const C sum = block_sums(sums);
    const int64_t k = first + threadIdx.x;
    if (threadIdx.x < kTile && k < slice.terms) slice.partial_sum(k, chunk.number) = sum;
  }
}

}  // namespace

template <class S>
void term_norms(const S& slice, int64_t chunks, cudaStream_t stream) {
  launch_blocks(term_norms_kernel<S>, chunks, stream, slice);
}

MTADAM_INSTANTIATE(term_norms)

}  // namespace mtadam::cuda
