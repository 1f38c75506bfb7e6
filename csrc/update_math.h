// The formulas of MTAdam and CombinedAdam for one element and one (layer, term) pair, for host and device.
//
// Each stands here once for all of C++ and CUDA. `mtadam_fused/reference.py` and `triton_kernels/update_math.py` have
// the same functions under the same names, and the tests hold the three to one float64 formula.
//
// Source: Malkiel and Wolf, "MTAdam: Automatic Balancing of Multiple Training Loss Terms", arXiv 2006.14683,
// algorithm 1, with the K first moments of the paper summed into one (they share beta1 and the step).
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#if defined(__CUDACC__)
#define MTADAM_FN __host__ __device__ __forceinline__
#else
// Always inlined: the CPU kernels are compiled once per instruction set, and the linker must never keep an out-of-line
// copy made for AVX-512 for a machine without it.
#define MTADAM_FN inline __attribute__((always_inline))
#endif

namespace mtadam {

// Running norms at or below this count as zero: the term cannot be an anchor and is not scaled (published value).
constexpr double kTinyNorm = 1e-10;

// A running norm that has not started yet is NaN, and NaN alone differs from itself.
template <class C>
MTADAM_FN bool has_started(C norm_avg) {
  return norm_avg == norm_avg;
}

// False for NaN (the norm of an absent gradient, too) and for infinities.
template <class C>
MTADAM_FN bool is_finite(C x) {
  return x - x == C(0);
}

// How a running norm remembers: the moving average with beta3, the same with Adam's bias correction, the largest norm
// so far, or the largest of the norms that have each shrunk by beta3 at every step since.
enum Norms : int64_t { kAverage = 0, kCorrected = 1, kPeak = 2, kDecayingPeak = 3 };

// What a layer's terms are balanced against, where it is not the position of a term.
enum Anchor : int64_t { kFirst = -1, kNoAnchor = -2, kGeometricMean = -3 };

// The decay of a layer's running norms at its step t, from 1. With bias correction it grows from 0 to beta3: the
// running norm of a term that is there from the first step is then the average started at zero, divided by 1 - beta3^t.
template <class C>
MTADAM_FN C norm_decay(double beta3, double step, int64_t norms) {
  if (norms == kCorrected) return C(beta3 * (1.0 - std::pow(beta3, step - 1.0)) / (1.0 - std::pow(beta3, step)));
  return norms == kPeak ? C(1) : C(beta3);
}

// The running norm of one (layer, term) pair after a step whose gradient has the given norm.
//
// A norm that is not finite is left out, so that one bad gradient does not spoil all steps after it. An absent term has
// the norm NaN: it keeps its running norm, and can still be the anchor. With `first_nonzero` the running norm starts at
// the first norm above kTinyNorm instead of the first one. With `peak` it is
// the norm, or what the decay has left of it if that is larger.
template <class C>
MTADAM_FN C running_norm(C norm_avg, C norm, C decay, bool first_nonzero, bool peak) {
  if (!is_finite(norm)) return norm_avg;
  if (!has_started(norm_avg)) return first_nonzero && !(norm > C(kTinyNorm)) ? norm_avg : norm;
  const C left = decay * norm_avg;
  return peak ? (norm > left ? norm : left) : left + (C(1) - decay) * norm;
}

// The number that a layer's terms are balanced against, of those of their running norms that are above kTinyNorm: that
// of the term at position `anchor`, or the first, or their geometric mean, 0 where none is; or 1 without an anchor. The
// geometric mean also stands in for a term whose running norm is not above kTinyNorm.
template <class C>
MTADAM_FN C anchor_of(int64_t terms, const C* norm_avg, int64_t anchor) {
  if (anchor == kNoAnchor) return C(1);
  if (anchor >= 0 && norm_avg[anchor] > C(kTinyNorm)) return norm_avg[anchor];
  double logs = 0;
  int64_t active = 0;
  for (int64_t k = 0; k < terms; ++k)
    if (norm_avg[k] > C(kTinyNorm)) {
      if (anchor == kFirst) return norm_avg[k];
      logs += std::log(double(norm_avg[k]));
      ++active;
    }
  return active ? C(std::exp(logs / double(active))) : C(0);
}

// The factor that brings a term's running norm to the anchor's, times the user's weight.
template <class C>
MTADAM_FN C term_scale(C norm_avg, C anchor, C weight) {
  return norm_avg > C(kTinyNorm) ? weight * (anchor / norm_avg) : C(1);
}

// h_k: the balanced gradient of one term, with weight decay in the published L2 form (once per term).
template <class C>
MTADAM_FN C balanced_gradient(C grad, C scale, C param, C weight_decay) {
  return scale * grad + weight_decay * param;
}

// Adds the weighted gradient of one more term to the sum of those so far.
template <class C>
MTADAM_FN C add_weighted(C total, C grad, C weight) {
  return total + weight * grad;
}

// m after a step: one for all terms. `combined` is the sum of h_k over the terms.
template <class C>
MTADAM_FN C first_moment(C exp_avg, C combined, C beta1, C one_minus_beta1) {
  return beta1 * exp_avg + one_minus_beta1 * combined;
}

// v_k after a step: one per term, or one for all with the combined gradient as h.
template <class C>
MTADAM_FN C second_moment(C exp_avg_sq, C h, C beta2, C one_minus_beta2) {
  return beta2 * exp_avg_sq + one_minus_beta2 * h * h;
}

// The larger of two numbers, NaN if either is (as torch.maximum).
template <class C>
MTADAM_FN C nan_max(C a, C b) {
  return a >= b || a != a ? a : b;
}

// What a step multiplies by.
template <class C>
struct StepFactors {
  C step_size;        // lr / (1 - beta1^t)
  C inv_correction2;  // 1 / sqrt(1 - beta2^t)
  C eps;
  C decay;    // lr * weight_decay where the decay is decoupled, else 0
  C unscale;  // 1 / grad_scale, for gradients of losses that a GradScaler has multiplied by grad_scale
};

// The scalars of one parameter's step.
template <class C>
struct RowScalars {
  C grad_sign;  // -1 to maximize, else 1
  C beta1, one_minus_beta1;
  C beta2, one_minus_beta2;
  C l2_decay;  // added to the gradient as l2_decay * param
  StepFactors<C> factors;
};

// Adds one term's h_k to `combined`, and advances the term's second moment.
template <class C>
MTADAM_FN void add_term(C grad, C scale, C param, const RowScalars<C>& row, C& exp_avg_sq, C& combined) {
  const C h = balanced_gradient(grad, row.grad_sign * scale, param, row.l2_decay);
  combined += h;  // first: with g++ 12 the other order made the CPU kernel 2 to 3% slower
  exp_avg_sq = second_moment(exp_avg_sq, h, row.beta2, row.one_minus_beta2);
}

// In double until the end, because beta^t loses digits in float. `step` is the number of the step, from 1.
template <class C>
MTADAM_FN StepFactors<C> step_factors(double lr, double beta1, double beta2, double eps, double decoupled_decay,
                                      double step, double grad_scale = 1.0) {
  return {C(lr / (1.0 - std::pow(beta1, step))), C(1.0 / std::sqrt(1.0 - std::pow(beta2, step))), C(eps),
          C(lr * decoupled_decay), C(1.0 / grad_scale)};
}

// Of a number, or of each element of a vector of the CPU kernels.
template <class C>
MTADAM_FN C square_root(C x) {
  if constexpr (std::is_arithmetic_v<C>) {
    return std::sqrt(x);
  } else {
    for (unsigned i = 0; i < sizeof x / sizeof x[0]; ++i) x[i] = std::sqrt(x[i]);
    return x;
  }
}

// The parameter after a step. `largest` is the largest v_k over the terms; with AMSGrad the largest maximum.
template <class C>
MTADAM_FN C updated_param(C param, C exp_avg, C largest, const StepFactors<C>& f) {
  const C change = f.step_size * exp_avg / (square_root(largest) * f.inv_correction2 + f.eps) + f.decay * param;
  return param - change;  // one subtraction, so that the parameter is rounded once
}

}  // namespace mtadam
