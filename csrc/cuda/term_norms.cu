#include "reduce.cuh"

namespace mtadam::cuda {
namespace {

template <int V, class C, class G>
__device__ inline C squares(const Chunk& chunk, int64_t grad) {
  Pack<C, V> sum = {};
  const int64_t whole = chunk.end - (chunk.end - chunk.begin) % V;
  for (int64_t i = chunk.begin + threadIdx.x * V; i < whole; i += kThreads * V) {
    const Pack<C, V> g = load_pack<C, V>(element<const G>(grad, i));
#pragma unroll
    for (int j = 0; j < V; ++j) sum.at[j] += g.at[j] * g.at[j];
  }
  C total = C(0);
#pragma unroll
  for (int j = 0; j < V; ++j) total += sum.at[j];
  if (whole + threadIdx.x < chunk.end) {
    const C g = load(*element<const G>(grad, whole + threadIdx.x));
    total += g * g;
  }
  return total;
}

template <class C, class G>
__device__ inline C squares(const Chunk& chunk, int64_t grad) {
  return is_aligned(grad) ? squares<kVector, C, G>(chunk, grad) : squares<1, C, G>(chunk, grad);
}

__device__ inline double squares(double, const Chunk& chunk, int64_t grad, int64_t) {
  return squares<double, double>(chunk, grad);
}

__device__ inline float squares(float, const Chunk& chunk, int64_t grad, int64_t type) {
  if (grad & kWide) return squares<float, float>(chunk, grad & ~kWide);
  if (type == kBFloat16) return squares<float, BFloat16>(chunk, grad);
  if (type == kFloat16) return squares<float, Half>(chunk, grad);
  return squares<float, float>(chunk, grad);
}

// Stage 1, a block per chunk: the sum of squares of each term's gradient over the chunk.
template <class C>
__global__ void __launch_bounds__(kThreads) term_norms_kernel(const __grid_constant__ Slice<C> slice) {
  const Chunk chunk = chunk_of(slice, blockIdx.x);
  const int64_t type = slice.row[chunk.row].param_type;
  for (int64_t k = 0; k < slice.terms; ++k) {
    const int64_t grad = slice.grad(k, chunk.row);
    if (!grad) continue;  // the same for all threads of the block
    const C sum = block_sum(squares(C(0), chunk, grad, type));
    if (threadIdx.x == 0) slice.partial[chunk.number * slice.terms + k] = sum;
  }
}

}  // namespace

template <class C>
void term_norms(const Slice<C>& slice, unsigned blocks, cudaStream_t stream) {
  launch(term_norms_kernel<C>, blocks, kThreads, stream, slice);
}

template void term_norms(const Slice<double>&, unsigned, cudaStream_t);
template void term_norms(const Slice<float>&, unsigned, cudaStream_t);

}  // namespace mtadam::cuda
