// The three stages in one launch.
//
// Blocks take their work from a queue, in order: for each row the norms of its chunks and, some chunks of the rows
// after it later, its updates (the order is made on the host). By then its norms are mostly complete, and its gradients
// still in the cache. A block that has to wait waits for blocks that took their work before it, so the first of them
// never waits, whichever run.
#include "stages.cuh"

#if defined(__CUDACC__)
#include <cuda/atomic>
#endif

namespace mtadam::cuda {
namespace {

using Counter = ::cuda::atomic_ref<unsigned, ::cuda::thread_scope_device>;

// How far a row is: a count of the chunks of which the norms are complete, one more when the row is balanced, and of
// the chunks whose update has begun. The last of these sets it back to zero.
template <class S>
struct Progress {
  Counter count;
  unsigned chunks;

  __device__ Progress(const S& slice, int64_t r)
      : count(slice.queue[1 + r]), chunks(unsigned(slice.chunk_start[r + 1] - slice.chunk_start[r])) {}

  // Whether these were the last norms to be complete. Then all of them can be read, by the whole block.
  __device__ bool end_norms() {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) last = count.fetch_add(1, ::cuda::memory_order_acq_rel) == chunks - 1;
    __syncthreads();
    return last;
  }
  __device__ void end_balance() {
    __syncthreads();
    if (threadIdx.x == 0) count.fetch_add(1, ::cuda::memory_order_release);
  }
  __device__ void begin_update() {
    if (threadIdx.x == 0) {
      while (count.load(::cuda::memory_order_relaxed) <= chunks) __nanosleep(20);
      // Acquired once, not each time in vain: that empties the multiprocessor's first-level cache.
      if (count.fetch_add(1, ::cuda::memory_order_acquire) == 2 * chunks) count.store(0, ::cuda::memory_order_relaxed);
    }
    __syncthreads();
  }
};

// A block for the norms of each chunk, and one for its update.
template <class S>
__global__ void __launch_bounds__(kThreads, kUpdateBlocks<typename S::Arithmetic>)
    mtadam_step_kernel(const __grid_constant__ S slice) {
  __shared__ int32_t work;
  if (threadIdx.x == 0) {
    Counter taken(slice.queue[0]);
    const unsigned place = taken.fetch_add(1, ::cuda::memory_order_relaxed);
    if (place == gridDim.x - 1) taken.store(0, ::cuda::memory_order_relaxed);
    work = slice.order[2 * slice.first_chunk + place];
  }
  __syncthreads();
  const bool is_update = work < 0;
  const Chunk chunk = slice.chunk[is_update ? ~work : work];
  Progress<S> row(slice, chunk.row);
  if (is_update) {
    row.begin_update();
    mtadam_update_chunk(slice, chunk);
  } else {
    chunk_norms(slice, chunk);
    if (!row.end_norms()) return;
    fold_norms_row(slice, chunk.row);
    balance_row(slice, chunk.row);
    row.end_balance();
  }
}

}  // namespace

template <class S>
void mtadam_step(const S& slice, int64_t chunks, cudaStream_t stream) {
  launch_blocks(mtadam_step_kernel<S>, 2 * chunks, stream, slice);
}

MTADAM_INSTANTIATE(mtadam_step)

}  // namespace mtadam::cuda
