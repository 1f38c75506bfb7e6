// What the CUDA kernels share: their argument, chunks of rows, vectors of elements, and launching.
//
// The tests run these sources on the CPU too, behind a header that stands in for the CUDA runtime; so nothing here goes
// beyond what that header has.
#pragma once

#include <cstdint>

#include "../float16.h"
#include "../launch.h"
#include "../update_math.h"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

namespace mtadam::cuda {

// Threads of a block; a block works on one chunk of one row.
constexpr int kThreads = 256;

// Elements that a thread takes at once: 16 bytes of float, so that a warp asks for whole lines.
constexpr int kVector = 4;

// Addresses in the kernel's argument, which is at most 32,764 bytes.
constexpr int64_t kMaxAddresses = 4064;

// The argument of every kernel: rows [first, first + count) of a step. All pointers are to device memory.
template <class C>
struct Slice {
  int64_t terms, first, count, rows;
  const Row* row;              // [rows]
  const Group* group;          // [groups]
  const double* weight;        // [groups, terms]
  const int64_t* second;       // [terms, rows] addresses
  const int64_t* maximum;      // [terms, rows] addresses
  const int64_t* chunk_start;  // [rows + 1] the number of each row's first chunk
  C* partial;                  // [chunks, terms] sums of squares
  StepFactors<C>* factors;     // [rows]
  float* steps;                // [rows] steps taken
  C* norm;                     // [rows, terms]
  C* running;                  // [rows, terms]
  C* scale;                    // [rows, terms]
  bool wants_combined;
  // [terms, count] addresses of gradients, 0 where absent, with the lowest bit set where a gradient is float32 though
  // its parameter is not; then, where wanted, [count] addresses for the sums of balanced gradients.
  int64_t address[kMaxAddresses];

  MTADAM_FN int64_t grad(int64_t k, int64_t r) const { return address[k * count + r - first]; }
  MTADAM_FN int64_t combined(int64_t r) const { return wants_combined ? address[terms * count + r - first] : 0; }
  MTADAM_FN bool is_reached(int64_t r) const {
    for (int64_t k = 0; k < terms; ++k)
      if (grad(k, r)) return true;
    return false;
  }
};
static_assert(sizeof(Slice<double>) <= 32764, "a kernel's argument is at most 32,764 bytes");

constexpr int64_t kWide = 1;  // the lowest bit of a gradient's address

struct Chunk {
  int64_t number, row, begin, end;  // elements [begin, end) of the row
};

// The slice's chunk for a block: the last row that starts at or before it, found by halving.
template <class C>
__device__ inline Chunk chunk_of(const Slice<C>& slice, int64_t block) {
  const int64_t number = slice.chunk_start[slice.first] + block;
  int64_t low = slice.first, high = slice.first + slice.count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (slice.chunk_start[middle] <= number ? low : high) = middle;
  }
  const int64_t begin = (number - slice.chunk_start[low]) * kChunk;
  const int64_t rest = slice.row[low].numel - begin;
  return {number, low, begin, begin + (rest < kChunk ? rest : kChunk)};
}

// V consecutive elements in registers.
template <class T, int V>
struct alignas(sizeof(T) * V < 16 ? sizeof(T) * V : 16) Pack {
  T at[V];
};

template <class C, int V, class T>
__device__ inline Pack<C, V> load_pack(const T* from) {
  const Pack<T, V> stored = *reinterpret_cast<const Pack<T, V>*>(from);
  Pack<C, V> loaded;
#pragma unroll
  for (int j = 0; j < V; ++j) loaded.at[j] = load(stored.at[j]);
  return loaded;
}

template <int V, class T, class C>
__device__ inline void store_pack(T* to, const Pack<C, V>& values) {
  Pack<T, V> stored;
#pragma unroll
  for (int j = 0; j < V; ++j) store(&stored.at[j], values.at[j]);
  *reinterpret_cast<Pack<T, V>*>(to) = stored;
}

template <class T>
__device__ inline T* element(int64_t address, int64_t i) {
  return reinterpret_cast<T*>(address) + i;
}

// Whether an address fits vectors of kVector elements of 16 bits or more (16 bytes fit them all).
__device__ inline bool is_aligned(int64_t address) { return (address & ~kWide & 15) == 0; }

#if defined(__CUDACC__)
template <class Argument>
void launch(void (*kernel)(Argument), unsigned blocks, unsigned threads, cudaStream_t stream,
            const Argument& argument) {
  kernel<<<blocks, threads, 0, stream>>>(argument);
}
#endif

// Each launches its kernel, which stands in the file of the same name, with so many blocks.
template <class C>
void term_norms(const Slice<C>& slice, unsigned blocks, cudaStream_t stream);
template <class C>
void balance(const Slice<C>& slice, unsigned blocks, cudaStream_t stream);
template <class C>
void mtadam_update(const Slice<C>& slice, unsigned blocks, cudaStream_t stream);

}  // namespace mtadam::cuda
