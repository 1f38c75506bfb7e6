#include "blocks.h"

#include "../float16.h"

namespace mtadam::cpu {
namespace {

// Few cores read memory at full speed only with more cache lines on their way than the hardware asks for by itself.
template <class T>
MTADAM_FN void prefetch(const T* from, int64_t n) {
  for (int64_t byte = 0; byte < n * int64_t(sizeof(T)); byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(from) + byte);
}

// How far ahead sum_of_squares asks, in bytes; 1,024 to 8,192 measured alike, without it it is a tenth slower.
constexpr int64_t kAhead = 4096;

template <class C, class G>
C sum_of_squares(const void* address, int64_t n) {
  // Independent lanes, summed pairwise at the end: enough of them to hide the latency of an addition, and the result
  // depends neither on the instruction set nor on the address.
  constexpr int kLanes = 128 / sizeof(C);
  const G* grad = static_cast<const G*>(address);
  C lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    prefetch(grad + i + kAhead / sizeof(G), kLanes);
#pragma GCC ivdep
    for (int j = 0; j < kLanes; ++j) {
      const C g = load(grad[i + j]);
      lane[j] += g * g;
    }
  }
  for (int j = 0; i + j < n; ++j) {
    const C g = load(grad[i + j]);
    lane[j] += g * g;
  }
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int j = 0; j < width; ++j) lane[j] += lane[j + width];
  return lane[0];
}

// Loops over raw addresses that never overlap: the pragma spares the compiler its run-time checks.
#define MTADAM_LOOP(i, n) _Pragma("GCC ivdep") for (int64_t i = 0; i < (n); ++i)

// One term's part of a block: adds h_k to `combined`, advances its second moment, raises `largest`.
template <class C, class G>
MTADAM_FN void add_term(const G* grad, C scale, const C* param, C* second, C* combined, C* largest, int64_t n,
                        const RowStep<C>& row) {
  const C decay = row.l2_decay, beta2 = row.beta2, one_minus_beta2 = row.one_minus_beta2;
  MTADAM_LOOP(i, n) {
    const C h = balanced_gradient(load(grad[i]), scale, param[i], decay);
    combined[i] += h;
    second[i] = second_moment(second[i], h, beta2, one_minus_beta2);
    largest[i] = larger(largest[i], second[i]);
  }
}

template <class C>
MTADAM_FN void raise(C* largest, const C* by, int64_t n) {
  MTADAM_LOOP(i, n) largest[i] = larger(largest[i], by[i]);
}

// Visits of a term in a block that the memory is asked for ahead of their turn, a constant number of bytes whatever K
// is. With the next block instead, 10 terms would push each other out of the first-level cache.
constexpr int64_t kTermsAhead = 6;

// Asks for what visit k (counted from this block's first, on through the blocks after it) will read of its term. Blocks
// are taken last to first, so those after this one lie before it.
template <class G, class C>
MTADAM_FN void prefetch_term(const BlockPointers<C>& at, int64_t k, int64_t n, int64_t terms) {
  const int64_t offset = k / terms * kBlock;
  const int64_t term = k % terms;
  if (at.second[term]) prefetch(at.second[term] - offset, n);
  if (at.grad[term]) prefetch(static_cast<const G*>(at.grad[term]) - offset, n);
}

template <class C, class P, class G>
void update(const BlockPointers<C>& at, int64_t n, const RowStep<C>& row) {
  P* param = static_cast<P*>(at.param);
  C* exp_avg = at.exp_avg;
  alignas(64) C value[kBlock], combined[kBlock], largest[kBlock];
  prefetch(param - kBlock, n);
  prefetch(exp_avg - kBlock, n);
  MTADAM_LOOP(i, n) {
    value[i] = load(param[i]);
    combined[i] = largest[i] = C(0);
  }
  for (int64_t k = 0; k < row.terms; ++k) {
    C* second = at.second[k];
    if (!second) continue;
    prefetch_term<G>(at, k + kTermsAhead, n, row.terms);
    if (const G* grad = static_cast<const G*>(at.grad[k]))
      add_term(grad, row.scale[k], value, second, combined, largest, n, row);
    else
      raise(largest, second, n);  // an absent term keeps its moments, and still bounds the step
    if (C* maximum = at.maximum[k]) {
      raise(maximum, second, n);
      raise(largest, maximum, n);
    }
  }
  const C beta1 = row.beta1, one_minus_beta1 = row.one_minus_beta1;
  const StepFactors<C> factors = row.factors;
  MTADAM_LOOP(i, n) {
    exp_avg[i] = first_moment(exp_avg[i], combined[i], beta1, one_minus_beta1);
    store(&param[i], updated_param(value[i], exp_avg[i], largest[i], factors));
  }
  if (P* out = static_cast<P*>(at.combined)) MTADAM_LOOP(i, n) store(&out[i], combined[i]);
}

}  // namespace

}  // namespace mtadam::cpu

// One object of functions per instruction set, named by the build: MTADAM_ISA is baseline, avx2 or avx512.
namespace mtadam::cpu::MTADAM_ISA {

extern const Blocks<double> float64;
const Blocks<double> float64 = {
    {sum_of_squares<double, double>},
    {{update<double, double, double>}},
};

extern const Blocks<float> float32;
const Blocks<float> float32 = {
    {nullptr, sum_of_squares<float, float>, sum_of_squares<float, BFloat16>, sum_of_squares<float, Half>},
    {{},
     {nullptr, update<float, float, float>},
     {nullptr, update<float, BFloat16, float>, update<float, BFloat16, BFloat16>},
     {nullptr, update<float, Half, float>, nullptr, update<float, Half, Half>}},
};

}  // namespace mtadam::cpu::MTADAM_ISA
