// MTAdam once more, one element at a time and in wider arithmetic, for the tests of the native kernels. It shares no
// code with them. Every result carries a bound on how far the roundings of the kernels' arithmetic may take them from
// it, so that the comparison needs no guessed tolerance: what lies outside is wrong.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "../../csrc/launch.h"
#include "formats.h"

namespace oracle {

// Wider than the arithmetic type C by enough bits that the oracle's own rounding does not count.
template <class C>
using Wide = std::conditional_t<std::is_same_v<C, double>, long double, double>;

// ---------------------------------------------------------------------------------------------------------------------
// Numbers with the error that rounding may have made
// ---------------------------------------------------------------------------------------------------------------------

// A number, and how far the same formula may lie from it when every operation rounds to C: the running error analysis
// of Higham, "Accuracy and Stability of Numerical Algorithms", section 3.3.
template <class C>
struct Bounded {
  Wide<C> value, error;
};

template <class C>
constexpr Wide<C> kUnit = Wide<C>(std::numeric_limits<C>::epsilon()) / 2;

template <class C>
Bounded<C> exact(Wide<C> value) {
  return {value, 0};
}

// A result of one operation of C, rounded once.
template <class C>
Bounded<C> rounded(Wide<C> value, Wide<C> error) {
  return {value, error + kUnit<C> * std::fabs(value) + std::numeric_limits<C>::denorm_min()};
}

// A scalar that the host makes in double and hands to the kernels in C.
template <class C>
Bounded<C> narrowed(Bounded<double> x) {
  return rounded<C>(Wide<C>(x.value), Wide<C>(x.error));
}

template <class C>
Bounded<C> operator+(Bounded<C> a, Bounded<C> b) {
  return rounded<C>(a.value + b.value, a.error + b.error);
}

template <class C>
Bounded<C> operator-(Bounded<C> a, Bounded<C> b) {
  return rounded<C>(a.value - b.value, a.error + b.error);
}

template <class C>
Bounded<C> operator*(Bounded<C> a, Bounded<C> b) {
  const Wide<C> error = std::fabs(a.value) * b.error + std::fabs(b.value) * a.error + a.error * b.error;
  return rounded<C>(a.value * b.value, error);
}

template <class C>
Bounded<C> operator/(Bounded<C> a, Bounded<C> b) {
  const Wide<C> quotient = a.value / b.value;
  return rounded<C>(quotient, (a.error + std::fabs(quotient) * b.error) / (std::fabs(b.value) - b.error));
}

template <class C>
Bounded<C> root(Bounded<C> x) {
  const Wide<C> value = std::sqrt(x.value);
  return rounded<C>(value, value - std::sqrt(std::max(x.value - x.error, Wide<C>(0))));
}

// NaN if either is, as torch.maximum.
template <class C>
Bounded<C> larger(Bounded<C> a, Bounded<C> b) {
  if (std::isnan(a.value) || std::isnan(b.value)) return exact<C>(std::numeric_limits<C>::quiet_NaN());
  return {std::max(a.value, b.value), std::max(a.error, b.error)};
}

// Two units, because pow need not round correctly.
inline Bounded<double> power(double base, double exponent) {
  const long double value = std::pow(static_cast<long double>(base), static_cast<long double>(exponent));
  return {value, 2 * kUnit<double> * value};
}

// Whether a stored number can be the kernel's result. Storage in C itself keeps the result; 16 bits round it once more,
// which keeps the order of numbers.
template <class C>
bool accepts(int64_t storage, Wide<C> got, Bounded<C> want) {
  if (std::isnan(want.value)) return std::isnan(got);
  if (std::isinf(want.value)) return got == want.value;
  const auto stored = [&](Wide<C> x) -> Wide<C> {
    if (storage == mtadam::kFloat16) return decode(kHalf, encode(kHalf, x));
    if (storage == mtadam::kBFloat16) return decode(kBrain, encode(kBrain, x));
    return x;
  };
  const Wide<C> error = want.error * Wide<C>(1.01);  // products of errors, and the oracle's own
  return stored(want.value - error) <= got && got <= stored(want.value + error);
}

// ---------------------------------------------------------------------------------------------------------------------
// The algorithm
// ---------------------------------------------------------------------------------------------------------------------

constexpr int64_t kMaxTerms = 16;

// Mistakes that the oracle can be told to make, to prove that the comparison sees them.
enum class Fault {
  kNone,
  kNormMissesLast,    // the last element is left out of the norm
  kNoFirstNonzero,    // a running norm starts at zero where it should wait
  kAbsentIsZero,      // an absent gradient counts as one of zeros
  kLastAnchor,        // the last term that is heard is the anchor, not the first
  kNoWeights,         // the user's term weights are forgotten
  kNoMaximize,        // the direction of the group is forgotten
  kDecayOnce,         // L2 decay for the first term alone
  kNoAmsgrad,         // the second moment bounds the step where its maximum should
  kSumOfSeconds,      // the sum of the second moments bounds the step, not the largest
  kAbsentUnbounded,   // an absent term does not bound the step
  kNoBiasCorrection,  // as if the step's number were infinite
  kNoEpsilon,         // nothing is added to the root
  kLearningRate,      // one percent too large
  kDecayAfterUpdate,  // decoupled decay after the update, not before it
  kCountStandsStill,  // the step count does not advance
};

// The roundings in a sum of squares partly cancel: 32 units are a quarter of the worst case of the longest chain.
constexpr int kNormUnits = 32;

// Published threshold: running norms at or below it count as zero.
constexpr double kTiny = 1e-10;

template <class C>
Bounded<C> term_norm(const std::vector<Wide<C>>& grad, Fault fault) {
  Wide<C> sum = 0;
  const size_t n = grad.size() - (fault == Fault::kNormMissesLast && !grad.empty());
  for (size_t i = 0; i < n; ++i) sum += grad[i] * grad[i];
  return {std::sqrt(sum), kNormUnits * kUnit<C> * std::sqrt(sum)};
}

// `norm` is NaN where the term is absent, `running` before the first norm.
template <class C>
Bounded<C> running_norm(Wide<C> running, Wide<C> norm, const mtadam::Group& group, Fault fault) {
  if (fault == Fault::kAbsentIsZero && std::isnan(norm)) norm = 0;
  if (!std::isfinite(norm)) return exact<C>(running);
  if (std::isnan(running)) {
    const bool waits = group.first_nonzero != 0 && norm <= kTiny && fault != Fault::kNoFirstNonzero;
    return exact<C>(waits ? running : norm);
  }
  const Bounded<C> beta3 = narrowed<C>(exact<double>(group.beta3));
  return beta3 * exact<C>(running) + (exact<C>(1) - beta3) * exact<C>(norm);
}

// The scales of one row, from its running norms after the step.
template <class C>
std::vector<Bounded<C>> scales(const std::vector<Wide<C>>& running, const double* weight, Fault fault) {
  const auto heard = [](Wide<C> norm) { return norm > kTiny; };
  Wide<C> anchor = 0;
  for (const Wide<C> norm : running)
    if (heard(norm) && (!heard(anchor) || fault == Fault::kLastAnchor)) anchor = norm;
  std::vector<Bounded<C>> scale;
  for (size_t k = 0; k < running.size(); ++k) {
    const Bounded<C> w = narrowed<C>(exact<double>(fault == Fault::kNoWeights ? 1.0 : weight[k]));
    scale.push_back(heard(running[k]) ? w * (exact<C>(anchor) / exact<C>(running[k])) : exact<C>(1));
  }
  return scale;
}

// The scalars of one row's step.
template <class C>
struct Factors {
  Bounded<C> beta1, one_minus_beta1, beta2, one_minus_beta2, l2_decay, step_size, root_correction2, eps,
      decoupled_decay;
  Wide<C> direction;
};

template <class C>
Factors<C> factors(const mtadam::Group& g, double step, Fault fault) {
  const Bounded<double> one = exact<double>(1);
  const Bounded<double> lr = exact<double>(g.lr * (fault == Fault::kLearningRate ? 1.01 : 1));
  const bool corrected = fault != Fault::kNoBiasCorrection;
  const Bounded<double> correction1 = corrected ? one - power(g.beta1, step) : one;
  const Bounded<double> correction2 = corrected ? one - power(g.beta2, step) : one;
  return {narrowed<C>(exact<double>(g.beta1)),
          narrowed<C>(one - exact<double>(g.beta1)),
          narrowed<C>(exact<double>(g.beta2)),
          narrowed<C>(one - exact<double>(g.beta2)),
          narrowed<C>(exact<double>(g.l2_decay)),
          narrowed<C>(lr / correction1),
          narrowed<C>(root(correction2)),
          narrowed<C>(exact<double>(fault == Fault::kNoEpsilon ? 0 : g.eps)),
          narrowed<C>(exact<double>(g.lr) * exact<double>(g.decoupled_decay)),
          fault == Fault::kNoMaximize ? Wide<C>(1) : Wide<C>(g.direction)};
}

// What one term brings to one element.
template <class C>
struct TermElement {
  bool is_reached, is_present, has_maximum;
  Wide<C> scale, grad, second, maximum;
};

template <class C>
struct Element {
  Wide<C> param, exp_avg;
  int64_t terms;
  std::array<TermElement<C>, kMaxTerms> term;
};

// Of the terms that are not reached nothing is set.
template <class C>
struct UpdatedElement {
  Bounded<C> combined, exp_avg, param;
  std::array<Bounded<C>, kMaxTerms> second, maximum;
};

template <class C>
UpdatedElement<C> mtadam_update(const Factors<C>& f, const Element<C>& at, Fault fault) {
  UpdatedElement<C> to;
  to.combined = exact<C>(0);
  Bounded<C> bound = exact<C>(0);
  bool decay_is_spent = false;
  for (int64_t k = 0; k < at.terms; ++k) {
    const TermElement<C>& term = at.term[k];
    if (!term.is_reached) continue;
    to.second[k] = exact<C>(term.second);
    if (term.is_present || fault == Fault::kAbsentIsZero) {
      Bounded<C> h = exact<C>(f.direction * term.scale) * exact<C>(term.is_present ? term.grad : 0);
      if (!decay_is_spent) h = h + f.l2_decay * exact<C>(at.param);
      decay_is_spent = fault == Fault::kDecayOnce;
      to.combined = to.combined + h;
      to.second[k] = f.beta2 * to.second[k] + f.one_minus_beta2 * (h * h);
    }
    if (term.has_maximum) to.maximum[k] = larger(exact<C>(term.maximum), to.second[k]);
    if (!term.is_present && fault == Fault::kAbsentUnbounded) continue;
    const Bounded<C>& by = term.has_maximum && fault != Fault::kNoAmsgrad ? to.maximum[k] : to.second[k];
    bound = fault == Fault::kSumOfSeconds ? bound + by : larger(bound, by);
  }
  to.exp_avg = f.beta1 * exact<C>(at.exp_avg) + f.one_minus_beta1 * to.combined;
  const Bounded<C> change = f.step_size * to.exp_avg / (root(bound) / f.root_correction2 + f.eps);
  // Change and decay in one subtraction: the parameter, far larger than both, is to be rounded once.
  const Bounded<C> p = exact<C>(at.param);
  const Bounded<C> decayed = fault == Fault::kDecayAfterUpdate ? p - change : p;
  to.param = p - (change + f.decoupled_decay * decayed);
  return to;
}

}  // namespace oracle
