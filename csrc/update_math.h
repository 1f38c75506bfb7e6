// The formulas of MTAdam and CombinedAdam for one element and one (layer, term) pair, for host and device. Nothing else
// in C++ or CUDA states them; `mtadam_fused/reference.py` states them once more in Python, and the tests hold the two
// together.
//
// Source: Malkiel and Wolf, "MTAdam: Automatic Balancing of Multiple Training Loss Terms", arXiv 2006.14683,
// algorithm 1, with the K first moments of the paper summed into one (they share beta1 and the step).
#pragma once

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define MTADAM_FN __host__ __device__ __forceinline__
#else
// Always inlined: the CPU kernels are compiled once per instruction set, and an out-of-line copy made for AVX-512 must
// never be the one that the linker keeps for a machine without it.
#define MTADAM_FN inline __attribute__((always_inline))
#endif

namespace mtadam {

// Running norms at or below this count as zero: the term cannot be an anchor and is not scaled (published value).
constexpr double kTinyNorm = 1e-10;

// A running norm that has not started yet. Only a comparison with itself tells it (NaN != NaN).
template <class C>
MTADAM_FN bool has_started(C running) {
  return running == running;
}

// False for NaN (also that of an absent gradient) and for infinities.
template <class C>
MTADAM_FN bool is_finite(C x) {
  return x - x == C(0);
}

// The running norm of one (layer, term) pair after a step whose gradient has the given norm. A norm that is not finite
// is left out, so that one bad gradient does not spoil all the steps after it; so is that of an absent term, NaN, which
// can still be the anchor. With `first_nonzero` the running norm
// starts at the first norm above kTinyNorm instead of the first one.
template <class C>
MTADAM_FN C running_norm(C running, C norm, C beta3, bool first_nonzero) {
  if (!is_finite(norm)) return running;
  if (has_started(running)) return beta3 * running + (C(1) - beta3) * norm;
  return first_nonzero && !(norm > C(kTinyNorm)) ? running : norm;
}

// The running norm that a layer's terms are balanced against: the first that counts. Zero where none does.
template <class C>
MTADAM_FN C anchor_of(int64_t terms, const C* running) {
  for (int64_t k = 0; k < terms; ++k)
    if (running[k] > C(kTinyNorm)) return running[k];
  return C(0);
}

// The factor of one term's gradient that brings its running norm to the anchor's, times the user's weight.
template <class C>
MTADAM_FN C term_scale(C running, C anchor, C weight) {
  return running > C(kTinyNorm) ? weight * (anchor / running) : C(1);
}

// h_k: the balanced gradient of one term, with weight decay in the published L2 form (once per term).
template <class C>
MTADAM_FN C balanced_gradient(C grad, C scale, C param, C weight_decay) {
  return scale * grad + weight_decay * param;
}

// The sum of weighted gradients so far, with one term's more.
template <class C>
MTADAM_FN C add_weighted(C sum, C grad, C weight) {
  return sum + weight * grad;
}

// m: one for all terms. `combined` is the sum of h_k over the terms.
template <class C>
MTADAM_FN C first_moment(C exp_avg, C combined, C beta1, C one_minus_beta1) {
  return beta1 * exp_avg + one_minus_beta1 * combined;
}

// v_k: one per term; in CombinedAdam one for all, with h the combined gradient.
template <class C>
MTADAM_FN C second_moment(C exp_avg_sq, C h, C beta2, C one_minus_beta2) {
  return beta2 * exp_avg_sq + one_minus_beta2 * h * h;
}

// The larger of two numbers, NaN if either is (as torch.maximum).
template <class C>
MTADAM_FN C larger(C a, C b) {
  return a >= b || a != a ? a : b;
}

// What a step multiplies by, from the hyper-parameters and the number of the step (from 1).
template <class C>
struct StepFactors {
  C step_size;        // lr / (1 - beta1^t)
  C inv_correction2;  // 1 / sqrt(1 - beta2^t)
  C eps;
  C decay;  // lr * weight_decay where the decay is decoupled, else 0
};

// In double on the host and in the first threads of a device block: beta^t loses digits in float.
template <class C>
MTADAM_FN StepFactors<C> step_factors(double lr, double beta1, double beta2, double eps, double decoupled_decay,
                                      double step) {
  return {C(lr / (1.0 - std::pow(beta1, step))), C(1.0 / std::sqrt(1.0 - std::pow(beta2, step))), C(eps),
          C(lr * decoupled_decay)};
}

// The parameter after the step. `largest` is the largest v_k (amsgrad: the largest maximum) over the terms.
template <class C>
MTADAM_FN C updated_param(C param, C exp_avg, C largest, const StepFactors<C>& f) {
  const C change = f.step_size * exp_avg / (std::sqrt(largest) * f.inv_correction2 + f.eps) + f.decay * param;
  return param - change;  // one subtraction, so that the parameter is rounded once
}

}  // namespace mtadam
