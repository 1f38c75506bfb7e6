// The 16-bit storage types by their definition, one number at a time.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

namespace oracle {

struct Format {
  int fraction_bits;
  int bias;

  uint16_t infinity() const { return uint16_t(0x7fff >> fraction_bits << fraction_bits); }
};
constexpr Format kHalf{10, 15};
constexpr Format kBrain{7, 127};

// The value of the bits of a magnitude, without infinities and NaN: the formula carried on to the largest exponent
// gives the step above the largest finite value, where rounding to infinity begins.
inline double magnitude(Format format, int bits) {
  const int exponent = bits >> format.fraction_bits;
  const int fraction = bits & ((1 << format.fraction_bits) - 1);
  const int units = exponent == 0 ? fraction : fraction + (1 << format.fraction_bits);
  return std::ldexp(units, std::max(exponent, 1) - format.bias - format.fraction_bits);
}

inline double decode(Format format, uint16_t bits) {
  const int unsigned_bits = bits & 0x7fff;
  double value = magnitude(format, unsigned_bits);
  if (unsigned_bits == format.infinity()) value = std::numeric_limits<double>::infinity();
  if (unsigned_bits > format.infinity()) value = std::numeric_limits<double>::quiet_NaN();
  return bits & 0x8000 ? -value : value;
}

// The nearest value's bits, ties to even.
template <class W>
uint16_t encode(Format format, W value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return 0x7fff;
  const W size = std::fabs(value);
  if (size >= W(magnitude(format, format.infinity()))) return sign | format.infinity();
  const int exponent = std::max(size == 0 ? 1 - format.bias : std::ilogb(size), 1 - format.bias);
  const int units = int(std::nearbyint(std::ldexp(size, format.fraction_bits - exponent)));
  // A carry out of the fraction raises the exponent, at the largest one to infinity, as it should.
  return uint16_t(sign | (((exponent + format.bias - 1) << format.fraction_bits) + units));
}

}  // namespace oracle
