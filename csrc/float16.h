// bfloat16 and IEEE half as stored in memory: to float and back, rounding to nearest even as torch does. C++17 has
// neither type. The conversions have no branches, so that the compiler vectorizes the loops that call them. GPUs have
// instructions for them.
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

MTADAM_FN uint32_t bits_of(float x) {
  uint32_t u;
  std::memcpy(&u, &x, sizeof u);
  return u;
}

MTADAM_FN float float_of(uint32_t u) {
  float x;
  std::memcpy(&x, &u, sizeof x);
  return x;
}

MTADAM_FN float load(float x) { return x; }
MTADAM_FN double load(double x) { return x; }
MTADAM_FN float load(BFloat16 x) { return float_of(uint32_t(x.bits) << 16); }
MTADAM_FN float load(Half x) {
#if defined(__CUDA_ARCH__)
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x.bits));
  return value;
#else
  const uint32_t magnitude = x.bits & 0x7fffu;
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;  // infinities and NaN keep a full exponent
  const uint32_t normal = ((magnitude << 13) + 0x38000000u) | special;
  // The mantissa behind 2^-14, less 2^-14: no operand is subnormal, which flush-to-zero would make zero.
  const uint32_t subnormal = bits_of(float_of((magnitude << 13) + 0x38800000u) - float_of(0x38800000u));
  return float_of((magnitude < 0x0400u ? subnormal : normal) | uint32_t(x.bits & 0x8000u) << 16);
#endif
}

MTADAM_FN void store(float* to, float x) { *to = x; }
MTADAM_FN void store(double* to, double x) { *to = x; }
MTADAM_FN void store(BFloat16* to, float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to->bits) : "f"(x));
#else
  const uint32_t u = bits_of(x);
  const uint32_t rounded = (u + 0x7fffu + (u >> 16 & 1u)) >> 16;
  to->bits = uint16_t((u & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
#endif
}
MTADAM_FN void store(Half* to, float x) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to->bits) : "f"(x));
#else
  const uint32_t u = bits_of(x);
  const uint32_t magnitude = u & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;  // the addition does the rounding
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  to->bits = uint16_t((magnitude >= 0x47800000u ? special : finite) | (u >> 16 & 0x8000u));
#endif
}

}  // namespace mtadam
