// csrc/float16.h against the definition of the 16-bit types: every one to float, and hard and random floats back.
#if defined(MTADAM_X86)
#include <pmmintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <vector>

#include "../../../csrc/float16.h"

// The types by their definition, one number at a time.
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

using oracle::Format;

namespace {

int failures = 0;

// Reports a condition that does not hold, and goes on.
void check(bool holds, const char* condition, int line) {
  constexpr int kShown = 20;  // a loop over all bit patterns can fail many thousand times
  if (!holds && ++failures <= kShown) std::fprintf(stderr, "line %d: failed: %s\n", line, condition);
}
#define CHECK(condition) check((condition), #condition, __LINE__)

constexpr int kPatterns = 1 << 16;

// Whether the processor takes subnormal operands and results for zero, as torch.set_flush_denormal has it do.
enum class Subnormals { kKept, kFlushed };

#if defined(MTADAM_X86)
constexpr Subnormals kModes[] = {Subnormals::kKept, Subnormals::kFlushed};

// Sets the mode for the rest of the scope.
class Mode {
 public:
  explicit Mode(Subnormals subnormals) : before_(_mm_getcsr()) {
    if (subnormals == Subnormals::kFlushed) _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON | _MM_DENORMALS_ZERO_ON);
  }
  Mode(const Mode&) = delete;
  ~Mode() { _mm_setcsr(before_); }

 private:
  const unsigned before_;
};
#else
constexpr Subnormals kModes[] = {Subnormals::kKept};

struct Mode {
  explicit Mode(Subnormals) {}
  ~Mode() {}
};
#endif

// The mode does what it says, and ends with its scope.
void test_mode() {
  volatile float smallest = std::numeric_limits<float>::denorm_min(), twice;
  for (const Subnormals subnormals : kModes) {
    {
      const Mode mode(subnormals);
      twice = smallest + smallest;
    }
    CHECK((twice == 0) == (subnormals == Subnormals::kFlushed));
    twice = smallest + smallest;
    CHECK(twice > 0);
  }
}

bool same_number(double a, double b) {
  return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b);
}

// Floats where rounding can go wrong: every 16-bit value, every tie between two of them (the last one between the
// largest finite value and infinity), and the floats next to each; both signs.
std::vector<float> hard_floats(Format format) {
  std::vector<float> floats = {0.0f,
                               1e-45f,
                               1e-30f,
                               3e38f,
                               std::numeric_limits<float>::max(),
                               INFINITY,
                               NAN,
                               mtadam::bit_cast<float>(0x7f800001u)};
  for (int bits = 0; bits < format.infinity(); ++bits) {
    const double value = oracle::magnitude(format, bits), next = oracle::magnitude(format, bits + 1);
    for (const float x : {float(value), float((value + next) / 2)})
      floats.insert(floats.end(), {std::nextafter(x, -INFINITY), x, std::nextafter(x, INFINITY)});
  }
  const size_t n = floats.size();
  for (size_t i = 0; i < n; ++i) floats.push_back(-floats[i]);
  return floats;
}

// A function of its own, which the compiler cannot take apart and move out of the scope of the mode.
template <class T>
__attribute__((noinline)) void load_all(float* to) {
  for (int bits = 0; bits < kPatterns; ++bits) to[bits] = mtadam::load(T{uint16_t(bits)});
}

// The mode ends before the comparison, which subnormal bfloat16 would come to as zeros.
template <class T>
void test_loads(Format format, Subnormals subnormals) {
  std::vector<float> loaded(kPatterns);
  {
    const Mode mode(subnormals);
    load_all<T>(loaded.data());
  }
  for (int bits = 0; bits < kPatterns; ++bits) CHECK(same_number(loaded[bits], oracle::decode(format, uint16_t(bits))));
}

template <class T>
bool stores_nearest(Format format, float x) {
  T stored;
  mtadam::store(&stored, x);
  return same_number(oracle::decode(format, stored.bits), oracle::decode(format, oracle::encode(format, x)));
}

template <class T>
void test_stores(Format format) {
  for (const float x : hard_floats(format)) CHECK(stores_nearest<T>(format, x));
  std::mt19937 random;
  for (int i = 0; i < 1000000; ++i) CHECK(stores_nearest<T>(format, mtadam::bit_cast<float>(uint32_t(random()))));
}

// The oracle's own rounding, at numbers worked out by hand.
void test_encode() {
  CHECK(oracle::encode(oracle::kHalf, 1.0) == 0x3c00);
  CHECK(oracle::encode(oracle::kHalf, -2.0) == 0xc000);
  CHECK(oracle::encode(oracle::kHalf, 1 + 0x1p-11) == 0x3c00);      // a tie goes down to even
  CHECK(oracle::encode(oracle::kHalf, 1 + 3 * 0x1p-11) == 0x3c02);  // and up to even
  CHECK(oracle::encode(oracle::kHalf, 65519.99) == 0x7bff);
  CHECK(oracle::encode(oracle::kHalf, 65520.0) == 0x7c00);
  CHECK(oracle::encode(oracle::kHalf, 0x1p-25) == 0);
  CHECK(oracle::encode(oracle::kHalf, 0x1.8p-24) == 2);
  CHECK(oracle::encode(oracle::kBrain, 1.0) == 0x3f80);
  CHECK(oracle::encode(oracle::kBrain, 1 + 0x1p-8) == 0x3f80);
  CHECK(oracle::encode(oracle::kBrain, 0x1p128) == 0x7f80);
  for (const Format format : {oracle::kHalf, oracle::kBrain})
    for (int bits = 0; bits < kPatterns; ++bits)
      if ((bits & 0x7fff) <= format.infinity())
        CHECK(oracle::encode(format, oracle::decode(format, uint16_t(bits))) == bits);
}

}  // namespace

int main() {
  test_encode();
  test_mode();
  test_stores<mtadam::Half>(oracle::kHalf);
  test_stores<mtadam::BFloat16>(oracle::kBrain);
  for (const Subnormals subnormals : kModes) {
    test_loads<mtadam::Half>(oracle::kHalf, subnormals);
    test_loads<mtadam::BFloat16>(oracle::kBrain, subnormals);
  }
  return failures ? 1 : 0;
}
