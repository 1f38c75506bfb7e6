#if defined(MTADAM_X86)
#include <pmmintrin.h>
#endif

#include <cmath>
#include <limits>
#include <vector>

#include "../../csrc/float16.h"
#include "check.h"
#include "formats.h"
#include "problem.h"
#include "random.h"
#include "tests.h"

using oracle::Format;

namespace {

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
  std::vector<float> floats = {
      0.0f, 1e-45f, 1e-30f, 3e38f, std::numeric_limits<float>::max(), INFINITY, NAN, mtadam::float_of(0x7f800001u)};
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
  Random random{8};
  for (int i = 0; i < 1000000; ++i) CHECK(stores_nearest<T>(format, mtadam::float_of(uint32_t(random.next()))));
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

// One row with one term whose gradient comes out as it went in: the scale is 1 and nothing decays.
Problem<float> identity_problem(Storage storage, int64_t numel) {
  Problem<float> problem = make_problem<float>(1, Placement::kBeforeGuard, {{numel, storage}});
  Parameter& row = problem.rows[0];
  row.combined.emplace(storage.param, numel, problem.placement);
  row.grad[0].emplace(storage.grad, numel, problem.placement);
  row.second[0].emplace(mtadam::kFloat32, numel, problem.placement);
  problem.groups[0].lr = problem.groups[0].l2_decay = problem.groups[0].decoupled_decay = 0;
  problem.groups[0].direction = problem.scale[0] = 1;
  return problem;
}

void update(Problem<float>& problem, Subnormals subnormals) {
  const Mode mode(subnormals);
  mtadam::cpu::mtadam_update(Tables<float>(problem).step());
}

// The conversions as the loops of the instruction set at hand make them: gradients to the 16-bit sum of the terms.
void test_gradients_through_loops(Storage storage, Format format, const std::vector<float>& values,
                                  Subnormals subnormals) {
  Problem<float> problem = identity_problem(storage, int64_t(values.size()));
  Tensor& grad = *problem.rows[0].grad[0];
  for (size_t i = 0; i < values.size(); ++i) grad.set(int64_t(i), values[i]);
  update(problem, subnormals);
  for (size_t i = 0; i < values.size(); ++i) {
    const double want = oracle::decode(format, oracle::encode(format, grad[int64_t(i)]));
    CHECK(same_number(want + 0.0, (*problem.rows[0].combined)[int64_t(i)] + 0.0));  // the sum loses the sign of zero
  }
}

// With a learning rate of 0 every parameter is read and stored again as it was.
void test_parameters_through_loops(Storage storage, Format format, Subnormals subnormals) {
  Problem<float> problem = identity_problem(storage, kPatterns);
  Tensor& param = problem.rows[0].param;
  for (int bits = 0; bits < kPatterns; ++bits) param.set_bits(bits, uint16_t(bits));
  update(problem, subnormals);
  for (int bits = 0; bits < kPatterns; ++bits)
    CHECK((bits & 0x7fff) < format.infinity() ? param.bits(bits) == bits
                                              : !std::isfinite(oracle::decode(format, param.bits(bits))));
}

void test_loops(int64_t type, Format format, Subnormals subnormals) {
  std::vector<float> values(kPatterns);
  for (int bits = 0; bits < kPatterns; ++bits) values[bits] = float(oracle::decode(format, uint16_t(bits)));
  test_gradients_through_loops({type, type}, format, values, subnormals);
  test_gradients_through_loops({type, mtadam::kFloat32}, format, hard_floats(format), subnormals);
  test_parameters_through_loops({type, type}, format, subnormals);
}

}  // namespace

void test_conversions() {
  test_encode();
  test_mode();
  test_stores<mtadam::Half>(oracle::kHalf);
  test_stores<mtadam::BFloat16>(oracle::kBrain);
  for (const Subnormals subnormals : kModes) {
    test_loads<mtadam::Half>(oracle::kHalf, subnormals);
    test_loads<mtadam::BFloat16>(oracle::kBrain, subnormals);
    test_loops(mtadam::kFloat16, oracle::kHalf, subnormals);
  }
  // Not where they are flushed: subnormal bfloat16 are subnormal floats, which the arithmetic then takes for zero.
  test_loops(mtadam::kBFloat16, oracle::kBrain, Subnormals::kKept);
}
