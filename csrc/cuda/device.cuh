// What the CUDA kernels share: their argument, chunks of rows, vectors of elements, and launching.
//
// The tests run these sources on the CPU too, with a header in the place of the CUDA runtime. So they use only what
// that header has.
#pragma once

#include <cstdint>
#include <cstring>
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

// Bytes of one access to memory, and the elements in it.
constexpr int64_t kVectorBytes = 16;
template <class T>
constexpr int kVector = kVectorBytes / sizeof(T);

// Addresses in a kernel's argument. A launch costs more the larger its argument is, so there are two sizes: about 4 KB,
// enough for most models, and nearly the 32,764 bytes that CUDA allows.
constexpr int64_t kFewAddresses = 478;
constexpr int64_t kMaxAddresses = 4060;

// Flags of a row, set in the address of its first term: bits that no address has.
constexpr int64_t kHasGrad = int64_t(1) << 60;  // a term reaches the row
constexpr int64_t kWide = int64_t(1) << 61;     // its gradients are float32, though the parameter is not
constexpr int64_t kAligned = int64_t(1) << 62;  // all addresses of the row are multiples of kVectorBytes
constexpr int64_t kFlags = kHasGrad | kWide | kAligned;

// The argument of every kernel: rows [first, first + count) of a step.
template <class C, int64_t kAddresses>
struct KernelArgs : DeviceArgs<C> {
  using Arithmetic = C;

  int64_t first, count, first_chunk;
  // [terms, count] addresses of gradients, 0 where absent, with a row's flags in that of the first term; then, where
  // wanted, [count] addresses for the combined gradients.
  int64_t address[kAddresses];

  MTADAM_FN int64_t grad_of(int64_t k, int64_t r) const { return address[k * count + r - first] & ~kFlags; }
  MTADAM_FN int64_t combined_of(int64_t r) const {
    return this->wants_combined ? address[this->terms * count + r - first] : 0;
  }
  MTADAM_FN bool has(int64_t flag, int64_t r) const { return address[r - first] & flag; }
  MTADAM_FN double& partial_sum(int64_t number, int64_t chunk) const {
    return this->partial[number * this->chunks + chunk];
  }
};
static_assert(sizeof(KernelArgs<double, kFewAddresses>) <= 4096, "most models' argument is at most 4 KB");
static_assert(sizeof(KernelArgs<double, kMaxAddresses>) <= 32764, "a kernel's argument is at most 32,764 bytes");

// Returns a chunk of the launch, counted from its first.
template <class S>
__device__ inline Chunk chunk_of(const S& args, int64_t index) {
  return args.chunk[args.first_chunk + index];
}

// Whether data is read again later in the step. A step reads gradients twice, for sums and for the update, and none
// writes them; its state it reads once. So the cache should keep what is read first, and nothing that is read last.
enum class Read { kFirst, kLast };

// V consecutive elements in registers. Only CUDA's own functions are sure to make one access of 16 bytes: that of a
// struct, or of a vector type, may become one access per member.
template <class T, int V>
struct Pack {
  T at[V];

  using Word = std::conditional_t<sizeof(T) * V % 16 == 0, int4, int2>;
  static constexpr int kWords = sizeof(T) * V / sizeof(Word);

  template <Read which>
  static __device__ Pack read(const T* from) {
    if constexpr (V == 1) {
      return {*from};
    } else {
      Word word[kWords];
#pragma unroll
      for (int n = 0; n < kWords; ++n) {
        const Word* const at = reinterpret_cast<const Word*>(from) + n;
        word[n] = which == Read::kFirst ? __ldg(at) : __ldcs(at);
      }
      Pack pack;
      std::memcpy(&pack, word, sizeof pack);
      return pack;
    }
  }

  __device__ void write(T* to) const {
    if constexpr (V == 1) {
      *to = at[0];
    } else {
      Word word[kWords];
      std::memcpy(word, at, sizeof at);
#pragma unroll
      for (int n = 0; n < kWords; ++n) __stcs(reinterpret_cast<Word*>(to) + n, word[n]);
    }
  }
};

template <class C, class T, int V>
__device__ inline Pack<C, V> convert(const Pack<T, V>& stored) {
  Pack<C, V> loaded;
#pragma unroll
  for (int j = 0; j < V; ++j) loaded.at[j] = load(stored.at[j]);
  return loaded;
}

template <class C, int V, class T>
__device__ inline Pack<C, V> load_pack(const T* from) {
  return convert<C>(Pack<T, V>::template read<Read::kLast>(from));
}

template <class T, class C, int V>
__device__ inline void store_pack(T* to, const Pack<C, V>& values) {
  Pack<T, V> stored;
#pragma unroll
  for (int j = 0; j < V; ++j) store(&stored.at[j], values.at[j]);
  stored.write(to);
}

template <class T>
__device__ inline T* element(int64_t address, int64_t i) {
  return reinterpret_cast<T*>(address) + i;
}

// What is read in the place of an absent gradient. Of a load that may not be made, ptxas waits for the result before it
// begins the next one.
static __device__ const int4 kZeros[1] = {};

// The gradients of T terms of a row, null where absent or beyond the last term. Their loads do not wait for each other.
template <class G, int T, Read kWhich>
struct Tile {
  const G* grad[T];

  template <class S>
  __device__ Tile(const S& args, int64_t r, int64_t first) {
#pragma unroll
    for (int k = 0; k < T; ++k)
      grad[k] = first + k < args.terms ? element<const G>(args.grad_of(first + k, r), 0) : nullptr;
  }

  // Returns zeros where absent.
  template <int V>
  __device__ Pack<G, V> read(int k, int64_t i) const {
    static_assert(sizeof(G) * V <= sizeof kZeros, "as many zeros as are read");
    return Pack<G, V>::template read<kWhich>(grad[k] ? grad[k] + i : reinterpret_cast<const G*>(kZeros));
  }
  template <class C, int V>
  __device__ Pack<C, V> load(int k, int64_t i) const {
    return convert<C>(read<V>(k, i));
  }
};

template <int V>
struct Width {
  static constexpr int value = V;
};

// Shares the elements of a chunk among the threads of a block: calls body(Width<W>(), i) for W elements from i on. W is
// V where the row is aligned, else 1.
template <int V, class S, class Body>
__device__ inline void for_vectors(const S& args, const Chunk& chunk, const Body& body) {
  const int64_t tail = args.has(kAligned, chunk.row) ? chunk.end - (chunk.end - chunk.begin) % V : chunk.begin;
  for (int64_t i = chunk.begin + threadIdx.x * V; i < tail; i += kThreads * V) body(Width<V>(), i);
  for (int64_t i = tail + threadIdx.x; i < chunk.end; i += kThreads) body(Width<1>(), i);
}

// Calls f with a value of the type of a row's gradients.
template <class S, class F>
__device__ inline void with_grad_type(const S& args, int64_t r, const F& f) {
  if constexpr (std::is_same_v<typename S::Arithmetic, double>) {
    f(double());
  } else {
    switch (args.has(kWide, r) ? int64_t(kFloat32) : args.row[r].param_type) {
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
__device__ inline void with_types(const S& args, int64_t r, const F& f) {
  with_grad_type(args, r, [&](auto grad) {
    if constexpr (std::is_same_v<decltype(grad), float>) {
      switch (args.row[r].param_type) {
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
void launch_blocks(void (*kernel)(S), int64_t blocks, cudaStream_t stream, const S& args, unsigned threads = kThreads) {
  if (blocks) launch(kernel, unsigned(blocks), threads, stream, args);
}

// Each launches its kernels, which are in the file of the same name (fold_norms: term_norms, begin_step:
// combined_adam), for args of so many chunks.
template <class S>
void term_norms(const S& args, int64_t chunks, cudaStream_t stream);
template <class S>
void fold_norms(const S& args, int64_t chunks, cudaStream_t stream);
template <class S>
void balance(const S& args, int64_t chunks, cudaStream_t stream);
template <class S>
void mtadam_update(const S& args, int64_t chunks, cudaStream_t stream);
template <class S>
void mtadam_step(const S& args, int64_t chunks, cudaStream_t stream);
template <class S>
void term_gram(const S& args, int64_t chunks, cudaStream_t stream);
template <class S>
void begin_step(const S& args, int64_t chunks, cudaStream_t stream);
template <class S>
void combined_adam(const S& args, int64_t chunks, cudaStream_t stream);
void launch_rule(const PCGradArgs& args, cudaStream_t stream);
void launch_rule(const EigenArgs& args, cudaStream_t stream);
void launch_rule(const MinNormArgs& args, cudaStream_t stream);

#define MTADAM_INSTANTIATE(launcher)                                                       \
  template void launcher(const KernelArgs<double, kFewAddresses>&, int64_t, cudaStream_t); \
  template void launcher(const KernelArgs<double, kMaxAddresses>&, int64_t, cudaStream_t); \
  template void launcher(const KernelArgs<float, kFewAddresses>&, int64_t, cudaStream_t);  \
  template void launcher(const KernelArgs<float, kMaxAddresses>&, int64_t, cudaStream_t);

}  // namespace mtadam::cuda
