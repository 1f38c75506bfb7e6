// The three stages in one launch.
//
// Blocks take work from a queue, in an order that the host has made: the norms of a row's chunks and, after the norms
// of some more chunks, the row's updates. By then its norms are mostly complete, and its gradients still in the cache.
// A block waits only for blocks that took their work before it. So the first of them never waits, whichever blocks run.
#include "stages.cuh"

#if defined(__CUDACC__)
#include <cuda/atomic>
#endif

namespace mtadam::cuda {
namespace {

using Counter = ::cuda::atomic_ref<unsigned, ::cuda::thread_scope_device>;

// The progress of a row: a count of the chunks whose norms are complete, one more when the row is balanced, and of the
// chunks whose update has begun. The last update sets it back to zero.
template <class S>
struct Progress {
  Counter count;
  unsigned chunks;

  __device__ Progress(const S& args, int64_t r)
      : count(args.queue[1 + r]), chunks(unsigned(args.chunk_start[r + 1] - args.chunk_start[r])) {}

  // Returns whether these were the last norms of the row. Then the whole block can read all of them.
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
      // Acquires once, not at each turn of the loop, because that empties the multiprocessor's first-level cache.
      if (count.fetch_add(1, ::cuda::memory_order_acquire) == 2 * chunks) count.store(0, ::cuda::memory_order_relaxed);
    }
    __syncthreads();
  }
};

// A block for the norms of each chunk, and one for its update: with one second moment, or one per term.
template <class S, bool kOneMoment>
__global__ void __launch_bounds__(kThreads, kUpdateBlocks<typename S::Arithmetic>)
    mtadam_step_kernel(const __grid_constant__ S args) {
  __shared__ int32_t work;
  if (threadIdx.x == 0) {
    Counter taken(args.queue[0]);
    const unsigned place = taken.fetch_add(1, ::cuda::memory_order_relaxed);
    if (place == gridDim.x - 1) taken.store(0, ::cuda::memory_order_relaxed);
    work = args.order[2 * args.first_chunk + place];
  }
  __syncthreads();
  if (is_skipped(args)) return;
  const bool is_update = work < 0;
  const Chunk chunk = args.chunk[is_update ? ~work : work];
  Progress<S> row(args, chunk.row);
  if (is_update) {
    row.begin_update();
    if constexpr (kOneMoment)
      combined_adam_chunk(args, chunk);
    else
      mtadam_update_chunk(args, chunk);
  } else {
    chunk_norms(args, chunk);
    if (!row.end_norms()) return;
    balance_row(args, chunk.row);
    row.end_balance();
  }
}

}  // namespace

template <class S>
void mtadam_step(const S& args, int64_t chunks, cudaStream_t stream) {
  launch_blocks(args.is_shared ? mtadam_step_kernel<S, true> : mtadam_step_kernel<S, false>, 2 * chunks, stream, args);
}

MTADAM_INSTANTIATE(mtadam_step)

}  // namespace mtadam::cuda
