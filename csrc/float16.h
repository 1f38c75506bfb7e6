// bfloat16 and IEEE half as stored in memory: to float and back, rounding to nearest even as torch does. C++17 has
// neither type. The conversions have no branches, so that they work on vectors too. GPUs have instructions for them.
#pragma once

#include <cstdint>
#include <cstring>

#include "update_math.h"

namespace mtadam {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <class To, class From>
MTADAM_FN To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// The formulas, for numbers and for the vectors of the CPU kernels: F is float and U uint32_t, or vectors of as many.
template <class F, class U>
MTADAM_FN F decoded(BFloat16, U bits) {
  return bit_cast<F>(bits << 16);
}

template <class F, class U>
MTADAM_FN F decoded(Half, U bits) {
  const U magnitude = bits & 0x7fffu;
  const U special = magnitude >= 0x7c00u ? U{} + 0x7f800000u : U{};  // infinities and NaN keep a full exponent
  const U normal = ((magnitude << 13) + 0x38000000u) | special;
  // The mantissa behind 2^-14, less 2^-14: no operand is subnormal, which flush-to-zero would make zero.
  const U subnormal = bit_cast<U>(bit_cast<F>((magnitude << 13) + 0x38800000u) - 0x1p-14f);
  return bit_cast<F>((magnitude < 0x0400u ? subnormal : normal) | (bits & 0x8000u) << 16);
}

template <class F, class U>
MTADAM_FN U encoded(BFloat16, F x) {
  const U u = bit_cast<U>(x);
  const U rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  return (u & 0x7fffffffu) > 0x7f800000u ? U{} + 0x7fc0u : rounded;
}

template <class F, class U>
MTADAM_FN U encoded(Half, F x) {
  const U u = bit_cast<U>(x);
  const U magnitude = u & 0x7fffffffu;
  const U normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  const U subnormal = bit_cast<U>(bit_cast<F>(magnitude) + 0.5f) - 0x3f000000u;  // the addition does the rounding
  const U special = magnitude > 0x7f800000u ? U{} + 0x7e00u : U{} + 0x7c00u;
  const U finite = magnitude < 0x38800000u ? subnormal : normal;
  return (magnitude >= 0x47800000u ? special : finite) | (u >> 16 & 0x8000u);
}

MTADAM_FN float load(float x) { return x; }
MTADAM_FN double load(double x) { return x; }
MTADAM_FN float load(BFloat16 x) { return decoded<float, uint32_t>(x, x.bits); }
MTADAM_FN float load(Half x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  return decoded<float, uint32_t>(x, x.bits);
#endif
}

MTADAM_FN void store(float* to, float x) { *to = x; }
MTADAM_FN void store(double* to, double x) { *to = x; }
MTADAM_FN void store(BFloat16* to, float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(x));
#else
  to->bits = uint16_t(encoded<float, uint32_t>(*to, x));
#endif
}
MTADAM_FN void store(Half* to, float x) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(x));
#else
  to->bits = uint16_t(encoded<float, uint32_t>(*to, x));
#endif
}

}  // namespace mtadam
