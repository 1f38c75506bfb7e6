// Vectors of the width that the instruction set has. Like all that only blocks.cpp includes, in an anonymous
// namespace: it is compiled once per instruction set, and the linker must not mix those.
#pragma once

#if defined(__AVX__)
#include <immintrin.h>
#endif

#include <cstring>
#include <type_traits>

#include "../float16.h"

namespace mtadam::cpu {
namespace {

constexpr int64_t kLineBytes = 64;  // of a cache

#if defined(__AVX512F__)
constexpr int64_t kRegisterBytes = 64;
#elif defined(__AVX__)
constexpr int64_t kRegisterBytes = 32;
#else
constexpr int64_t kRegisterBytes = 16;
#endif

template <class T, int64_t n>
struct VectorOf {
  using Type [[gnu::vector_size(n * sizeof(T))]] = T;
};
template <class T, int64_t n>
using VectorOfSize = typename VectorOf<T, n>::Type;
template <class C>
constexpr int64_t kWidth = kRegisterBytes / sizeof(C);
template <class C>
using Vector = VectorOfSize<C, kWidth<C>>;

// How many elements a C or a vector of it holds.
template <class V>
constexpr int64_t kElements = 1;
template <>
constexpr int64_t kElements<Vector<float>> = kWidth<float>;
template <>
constexpr int64_t kElements<Vector<double>> = kWidth<double>;

template <class T>
constexpr bool kIs16Bit = sizeof(T) == 2;

// Converts a vector of as many elements. The instructions for float to double are named, because g++ 12 would convert
// two halves, and put them together.
template <class V, class From>
MTADAM_FN V converted(const From& value) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<V, Vector<double>> && sizeof(From) == sizeof(V) / 2) return _mm512_cvtps_pd(value);
#elif defined(__AVX__)
  if constexpr (std::is_same_v<V, Vector<double>> && sizeof(From) == sizeof(V) / 2) return _mm256_cvtps_pd(value);
#endif
  return __builtin_convertvector(value, V);
}

// Loads the elements at `from`, in the arithmetic type.
template <class V, class T>
MTADAM_FN V load_as(const T* from) {
  constexpr int64_t n = kElements<V>;
  if constexpr (n == 1) {
    return load(*from);
  } else if constexpr (kIs16Bit<T>) {
    VectorOfSize<uint16_t, n> bits;
    std::memcpy(&bits, from, sizeof bits);
    const auto wide = __builtin_convertvector(bits, VectorOfSize<uint32_t, n>);
    return converted<V>(decoded<VectorOfSize<float, n>>(T{}, wide));
  } else {
    VectorOfSize<T, n> value;
    std::memcpy(&value, from, sizeof value);
    return converted<V>(value);
  }
}

template <class V, class T>
MTADAM_FN void store_as(T* to, const V& value) {
  constexpr int64_t n = kElements<V>;
  if constexpr (n == 1) {
    store(to, value);
  } else if constexpr (kIs16Bit<T>) {
    const auto wide = encoded<V, VectorOfSize<uint32_t, n>>(T{}, value);
    const auto bits = __builtin_convertvector(wide, VectorOfSize<uint16_t, n>);
    std::memcpy(to, &bits, sizeof bits);
  } else {
    std::memcpy(to, &value, sizeof value);
  }
}

// Returns a number in all elements of V.
template <class V, class C>
MTADAM_FN V broadcast(C value) {
  return value - V{};  // not a sum with zero, which changes -0, and so could not be left out
}

// A loop over a few vectors, unrolled so that they stay in registers, or over a few terms.
#define MTADAM_EACH(j, n) _Pragma("GCC unroll 8") for (int j = 0; j < (n); ++j)

}  // namespace
}  // namespace mtadam::cpu
