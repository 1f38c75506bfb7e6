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

// Loops over raw addresses that never overlap: the pragma spares the compiler its run-time checks.
#define MTADAM_LOOP(i, n) _Pragma("GCC ivdep") for (int64_t i = 0; i < (n); ++i)

// How far ahead of a sum its gradients are asked for, in bytes.
constexpr int64_t kAhead = 4096;

// Sums run in independent lanes, added up pairwise at the end: the result depends neither on the instruction set nor on
// the address. A vector of the widest instruction set; on others the compiler makes several of it.
constexpr int64_t kLaneBytes = 64;
template <class C>
using Lanes [[gnu::vector_size(kLaneBytes)]] = C;
template <class C>
constexpr int64_t kLanes = kLaneBytes / sizeof(C);

// n elements, then zeros.
template <class C, class G>
MTADAM_FN void load_lanes(Lanes<C>& lanes, const G* from, int64_t n) {
  C value[kLanes<C>] = {};
  MTADAM_LOOP(i, n) value[i] = load(from[i]);
  std::memcpy(&lanes, value, sizeof value);
}

template <class C>
MTADAM_FN C sum_of_lanes(const Lanes<C>& lanes) {
  C value[kLanes<C>];
  std::memcpy(value, &lanes, sizeof value);
  for (int width = kLanes<C> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) value[i] += value[i + width];
  return value[0];
}

// Which products of T gradients are summed: the squares; those of all pairs, (0, 0), (1, 0), (1, 1), (2, 0), ...; or
// those with one gradient more.
enum class Of { kSquares, kPairs, kOneMore };

template <int T, Of kOf>
constexpr int kProducts = kOf == Of::kPairs ? T * (T + 1) / 2 : T;

// Adds the products of n elements of each gradient, at most a vector of each.
template <class C, class G, int T, Of kOf>
MTADAM_FN void add_products(const G* const* grad, const G* one, int64_t n, Lanes<C> (&sum)[kProducts<T, kOf>]) {
  Lanes<C> g[T], more;
  for (int k = 0; k < T; ++k) load_lanes<C>(g[k], grad[k], n);
  if (kOf == Of::kOneMore) load_lanes<C>(more, one, n);
  for (int k = 0, product = 0; k < T; ++k)
    for (int j = kOf == Of::kPairs ? 0 : k; j <= k; ++j, ++product)
      sum[product] += g[k] * (kOf == Of::kOneMore ? more : g[j]);
}

// All gradients are read together: several streams come from memory faster than one after another.
template <class C, class G, int T, Of kOf>
void products(const void* const* grads, const void* one_more, int64_t n, C* sums) {
  Lanes<C> sum[kProducts<T, kOf>] = {};
  const G* grad[T];
  for (int k = 0; k < T; ++k) grad[k] = static_cast<const G*>(grads[k]);
  const G* one = static_cast<const G*>(one_more);
  for (int64_t i = 0; i < n; i += kLanes<C>) {
    if (kOf != Of::kOneMore)  // these are in the cache
      for (int k = 0; k < T; ++k) prefetch(grad[k] + kAhead / sizeof(G), kLanes<C>);
    if (i + kLanes<C> <= n)
      add_products<C, G, T, kOf>(grad, one, kLanes<C>, sum);
    else
      add_products<C, G, T, kOf>(grad, one, n - i, sum);
    for (int k = 0; k < T; ++k) grad[k] += kLanes<C>;
    if (kOf == Of::kOneMore) one += kLanes<C>;
  }
  for (int k = 0; k < kProducts<T, kOf>; ++k) sums[k] = sum_of_lanes<C>(sum[k]);
}

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

// What both updates end with: first moment, parameter, and the combined gradient where it is wanted.
template <class C, class P>
MTADAM_FN void advance(const BlockPointers<C>& at, const C* value, const C* gradient, const C* combined,
                       const C* largest, int64_t n, const RowStep<C>& row) {
  P* param = static_cast<P*>(at.param);
  C* exp_avg = at.exp_avg;
  const C beta1 = row.beta1, one_minus_beta1 = row.one_minus_beta1;
  const StepFactors<C> factors = row.factors;
  MTADAM_LOOP(i, n) {
    exp_avg[i] = first_moment(exp_avg[i], gradient[i], beta1, one_minus_beta1);
    store(&param[i], updated_param(value[i], exp_avg[i], largest[i], factors));
  }
  if (P* out = static_cast<P*>(at.combined)) MTADAM_LOOP(i, n) store(&out[i], combined[i]);
}

template <class C, class P, class G>
void mtadam_update(const BlockPointers<C>& at, int64_t n, const RowStep<C>& row) {
  const P* param = static_cast<const P*>(at.param);
  alignas(64) C value[kBlock], combined[kBlock], largest[kBlock];
  prefetch(param - kBlock, n);
  prefetch(at.exp_avg - kBlock, n);
  MTADAM_LOOP(i, n) {
    value[i] = load(param[i]);
    combined[i] = largest[i] = C(0);
  }
  for (int64_t k = 0; k < row.terms; ++k) {
    C* second = at.second[k];
    if (!second) continue;
    prefetch_term<G>(at, k + kTermsAhead, n, row.terms);
    if (const G* grad = static_cast<const G*>(at.grad[k]))
      add_term(grad, row.direction * row.scale[k], value, second, combined, largest, n, row);
    else
      raise(largest, second, n);  // an absent term keeps its moments, and still bounds the step
    if (C* maximum = at.maximum[k]) {
      raise(maximum, second, n);
      raise(largest, maximum, n);
    }
  }
  advance<C, P>(at, value, combined, combined, largest, n, row);
}

template <class C, class P, class G>
void combined_adam(const BlockPointers<C>& at, int64_t n, const RowStep<C>& row) {
  const P* param = static_cast<const P*>(at.param);
  C* second = at.second[0];
  alignas(64) C value[kBlock], combined[kBlock], gradient[kBlock];
  prefetch(param - kBlock, n);
  prefetch(at.exp_avg - kBlock, n);
  prefetch(second - kBlock, n);
  MTADAM_LOOP(i, n) {
    value[i] = load(param[i]);
    combined[i] = C(0);
  }
  for (int64_t k = 0; k < row.terms; ++k)
    if (const G* grad = static_cast<const G*>(at.grad[k])) {
      const C weight = row.scale[k];
      prefetch(grad - kBlock, n);
      MTADAM_LOOP(i, n) combined[i] = add_weighted(combined[i], C(load(grad[i])), weight);
    }
  const C direction = row.direction, decay = row.l2_decay, beta2 = row.beta2, one_minus_beta2 = row.one_minus_beta2;
  MTADAM_LOOP(i, n) {
    gradient[i] = balanced_gradient(combined[i], direction, value[i], decay);
    second[i] = second_moment(second[i], gradient[i], beta2, one_minus_beta2);
  }
  if (C* maximum = at.maximum[0]) raise(maximum, second, n);
  const C* largest = at.maximum[0] ? at.maximum[0] : second;
  advance<C, P>(at, value, gradient, combined, largest, n, row);
}

// The functions of 1 to kTogether gradients.
#define MTADAM_SUMS(of, C, G) \
  {products<C, G, 1, of>, products<C, G, 2, of>, products<C, G, 3, of>, products<C, G, 4, of>}

#define MTADAM_FLOAT_SUMS(of) \
  {{}, MTADAM_SUMS(of, float, float), MTADAM_SUMS(of, float, BFloat16), MTADAM_SUMS(of, float, Half)}

// The functions of one arithmetic type and the storage types that go with it.
#define MTADAM_UPDATES(of)                                                                                          \
  {                                                                                                                 \
    {}, {nullptr, of<float, float, float>}, {nullptr, of<float, BFloat16, float>, of<float, BFloat16, BFloat16>}, { \
      nullptr, of<float, Half, float>, nullptr, of<float, Half, Half>                                               \
    }                                                                                                               \
  }

}  // namespace

}  // namespace mtadam::cpu

// One object of functions per instruction set, named by the build: MTADAM_ISA is baseline, avx2 or avx512.
namespace mtadam::cpu::MTADAM_ISA {

extern const Blocks<double> float64;
const Blocks<double> float64 = {
    {MTADAM_SUMS(Of::kSquares, double, double)}, {MTADAM_SUMS(Of::kPairs, double, double)},
    {MTADAM_SUMS(Of::kOneMore, double, double)}, {{mtadam_update<double, double, double>}},
    {{combined_adam<double, double, double>}},
};

extern const Blocks<float> float32;
const Blocks<float> float32 = {
    MTADAM_FLOAT_SUMS(Of::kSquares), MTADAM_FLOAT_SUMS(Of::kPairs), MTADAM_FLOAT_SUMS(Of::kOneMore),
    MTADAM_UPDATES(mtadam_update),   MTADAM_UPDATES(combined_adam),
};

}  // namespace mtadam::cpu::MTADAM_ISA
