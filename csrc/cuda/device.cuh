// What the CUDA kernels share: their argument, chunks of rows, vectors of elements, and launching.
//
// The tests run these sources on the CPU too, behind a header that stands in for the CUDA runtime; so nothing here goes
// beyond what that header has.
#pragma once

#include <cstdint>
#include <type_traits>

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

// Addresses in a kernel's argument, of which there are two sizes because a launch costs more the larger it is: about
// 4 KB, for most models, and nearly the 32,764 bytes that there may be.
constexpr int64_t kFewAddresses = 480;
constexpr int64_t kMaxAddresses = 4064;

constexpr int64_t kWide = int64_t(1) << 62;  // set in a gradient's address; no address is as large

// The argument of every kernel: rows [first, first + count) of a step. All pointers are to device memory.
template <class C, int64_t kAddresses>
struct Slice {
  using Arithmetic = C;

  int64_t terms, moments, first, count, rows;
  const Row* row;              // [rows]
  const Group* group;          // [groups]
  const double* weight;        // [groups, terms]
  const int64_t* second;       // [moments, rows] addresses
  const int64_t* maximum;      // [moments, rows] addresses
  const int64_t* chunk_start;  // [rows + 1] the number of each row's first chunk
  C* partial;                  // [sums, chunks] sums over the elements of a chunk: a square per term, or all products
  StepFactors<C>* factors;     // [rows]
  float* steps;                // [rows] steps taken
  C* norm;                     // [rows, terms]
  C* running;                  // [rows, terms]
  C* scale;                    // [rows, terms]
  double* gram;                // [rows, terms, terms]
  bool wants_combined;
  // [terms, count] addresses of gradients, 0 where absent, with kWide where a gradient is float32 though its parameter
  // is not; then, where wanted, [count] addresses for the combined gradients.
  int64_t address[kAddresses];

  MTADAM_FN int64_t grad(int64_t k, int64_t r) const { return address[k * count + r - first] & ~kWide; }
  MTADAM_FN int64_t combined(int64_t r) const { return wants_combined ? address[terms * count + r - first] : 0; }
  MTADAM_FN bool is_reached(int64_t r) const {
    for (int64_t k = 0; k < terms; ++k)
      if (grad(k, r)) return true;
    return false;
  }
  // Of all gradients of a row or of none.
  MTADAM_FN bool is_wide(int64_t r) const {
    for (int64_t k = 0; k < terms; ++k)
      if (address[k * count + r - first] & kWide) return true;
    return false;
  }
  MTADAM_FN C& partial_sum(int64_t number, int64_t chunk) const { return partial[number * chunk_start[rows] + chunk]; }
};
static_assert(sizeof(Slice<double, kFewAddresses>) <= 4096, "most models' argument is at most 4 KB");
static_assert(sizeof(Slice<double, kMaxAddresses>) <= 32764, "a kernel's argument is at most 32,764 bytes");

struct Chunk {
  int64_t number, row, begin, end;  // elements [begin, end) of the row
};

// The slice's chunk for a block: the last row that starts at or before it, found by halving.
template <class S>
__device__ inline Chunk chunk_of(const S& slice, int64_t block) {
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

template <class C, class T, int V>
__device__ inline Pack<C, V> converted(const Pack<T, V>& stored) {
  Pack<C, V> loaded;
#pragma unroll
  for (int j = 0; j < V; ++j) loaded.at[j] = load(stored.at[j]);
  return loaded;
}

template <class C, int V, class T>
__device__ inline Pack<C, V> load_pack(const T* from) {
  return converted<C>(*reinterpret_cast<const Pack<T, V>*>(from));
}

template <class T, class C, int V>
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
__device__ inline bool is_aligned(int64_t address) { return (address & 15) == 0; }

// The gradients of T terms of a row, null where absent or beyond the last term. Loads of them do not wait for each
// other.
template <class G, int T>
struct Tile {
  const G* grad[T];

  template <class S>
  __device__ Tile(const S& slice, int64_t r, int64_t first) {
#pragma unroll
    for (int k = 0; k < T; ++k)
      grad[k] = first + k < slice.terms ? element<const G>(slice.grad(first + k, r), 0) : nullptr;
  }

  __device__ bool is_aligned() const {
    bool aligned = true;
#pragma unroll
    for (int k = 0; k < T; ++k) aligned = aligned && cuda::is_aligned(reinterpret_cast<int64_t>(grad[k]));
    return aligned;
  }

  // Zeros where absent.
  template <class C, int V>
  __device__ Pack<C, V> load(int k, int64_t i) const {
    Pack<G, V> stored = {};
    if (grad[k]) stored = *reinterpret_cast<const Pack<G, V>*>(grad[k] + i);
    return converted<C>(stored);
  }
};

template <int V>
struct Width {
  static constexpr int value = V;
};

// Shares the elements of a chunk among the threads of a block: calls body(Width<V>(), i) for V elements from i on, in
// vectors where all their addresses are aligned.
template <class Body>
__device__ inline void for_vectors(const Chunk& chunk, bool aligned, const Body& body) {
  const int64_t tail = aligned ? chunk.end - (chunk.end - chunk.begin) % kVector : chunk.begin;
  for (int64_t i = chunk.begin + threadIdx.x * kVector; i < tail; i += kThreads * kVector) body(Width<kVector>(), i);
  for (int64_t i = tail + threadIdx.x; i < chunk.end; i += kThreads) body(Width<1>(), i);
}

// Calls f with a value of the type of a row's gradients.
template <class S, class F>
__device__ inline void with_grad_type(const S& slice, int64_t r, const F& f) {
  if constexpr (std::is_same_v<typename S::Arithmetic, double>) {
    f(double());
  } else {
    switch (slice.is_wide(r) ? int64_t(kFloat32) : slice.row[r].param_type) {
      case kBFloat16:
        return f(BFloat16());
      case kFloat16:
        return f(Half());
      default:
        return f(float());
    }
  }
}

// Calls f with values of the types of a row's parameter and of its gradients.
template <class S, class F>
__device__ inline void with_types(const S& slice, int64_t r, const F& f) {
  with_grad_type(slice, r, [&](auto grad) {
    if constexpr (std::is_same_v<decltype(grad), float>) {
      switch (slice.row[r].param_type) {
        case kBFloat16:
          return f(BFloat16(), grad);
        case kFloat16:
          return f(Half(), grad);
        default:
          return f(grad, grad);
      }
    } else {
      f(grad, grad);
    }
  });
}

#if defined(__CUDACC__)
template <class Argument>
void launch(void (*kernel)(Argument), unsigned blocks, unsigned threads, cudaStream_t stream,
            const Argument& argument) {
  kernel<<<blocks, threads, 0, stream>>>(argument);
}
#endif

template <class S>
void launch_blocks(void (*kernel)(S), int64_t blocks, cudaStream_t stream, const S& slice,
                   unsigned threads = kThreads) {
  if (blocks) launch(kernel, unsigned(blocks), threads, stream, slice);
}

// Each launches its kernels, which stand in the file of the same name, for a slice of so many chunks.
template <class S>
void term_norms(const S& slice, int64_t chunks, cudaStream_t stream);
template <class S>
void balance(const S& slice, int64_t chunks, cudaStream_t stream);
template <class S>
void mtadam_update(const S& slice, int64_t chunks, cudaStream_t stream);
template <class S>
void term_gram(const S& slice, int64_t chunks, cudaStream_t stream);
template <class S>
void combined_adam(const S& slice, int64_t chunks, cudaStream_t stream);

#define MTADAM_INSTANTIATE(launcher)                                                  \
  template void launcher(const Slice<double, kFewAddresses>&, int64_t, cudaStream_t); \
  template void launcher(const Slice<double, kMaxAddresses>&, int64_t, cudaStream_t); \
  template void launcher(const Slice<float, kFewAddresses>&, int64_t, cudaStream_t);  \
  template void launcher(const Slice<float, kMaxAddresses>&, int64_t, cudaStream_t);

}  // namespace mtadam::cuda
