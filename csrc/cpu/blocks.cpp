#include "blocks.h"

#include "../float16.h"

namespace mtadam::cpu {
namespace {

// A few cores reach the memory's full speed only with more cache lines in flight than the hardware asks for by itself.
template <class T>
MTADAM_FN void prefetch(const T* from, int64_t n) {
  for (int64_t byte = 0; byte < n * int64_t(sizeof(T)); byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(from) + byte);
}

// Loops over raw addresses, which never overlap: the pragma spares the compiler its run-time checks.
#define MTADAM_LOOP(i, n) _Pragma("GCC ivdep") for (int64_t i = 0; i < (n); ++i)

// Prefetch distance of a sum, in bytes.
constexpr int64_t kAhead = 4096;

// Sums run in independent lanes, which are added pairwise at the end. So the result depends neither on the instruction
// set nor on the address. The lanes are a vector of the widest instruction set, and several of the others: one vector
// that the machine lacks would live in memory.
constexpr int64_t kLaneBytes = 64;
#if defined(__AVX512F__)
constexpr int64_t kRegisterBytes = 64;
#elif defined(__AVX__)
constexpr int64_t kRegisterBytes = 32;
#else
constexpr int64_t kRegisterBytes = 16;
#endif
template <class C>
struct Lanes {
  using Register [[gnu::vector_size(kRegisterBytes)]] = C;
  Register part[kLaneBytes / kRegisterBytes];
};
template <class C>
constexpr int64_t kLanes = kLaneBytes / sizeof(C);

template <class C>
MTADAM_FN void add_product(Lanes<C>& sum, const Lanes<C>& a, const Lanes<C>& b) {
  for (int64_t i = 0; i < kLaneBytes / kRegisterBytes; ++i) sum.part[i] += a.part[i] * b.part[i];
}

// Loads n elements, then zeros.
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

// The products of T gradients to sum: their squares; those of all pairs, (0, 0), (1, 0), (1, 1), (2, 0), ...; or those
// with one more gradient.
enum class Products { kSquares, kPairs, kOneMore };

template <int T, Products kWhich>
constexpr int kProducts = kWhich == Products::kPairs ? T * (T + 1) / 2 : T;

// Adds the products of n elements of each gradient, at most a vector of each.
template <class A, class G, int T, Products kWhich>
MTADAM_FN void add_products(const G* const* grad, const G* one, int64_t n, Lanes<A> (&sum)[kProducts<T, kWhich>]) {
  Lanes<A> g[T], more;
  for (int k = 0; k < T; ++k) load_lanes<A>(g[k], grad[k], n);
  if (kWhich == Products::kOneMore) load_lanes<A>(more, one, n);
  for (int k = 0, product = 0; k < T; ++k)
    for (int j = kWhich == Products::kPairs ? 0 : k; j <= k; ++j, ++product)
      add_product(sum[product], g[k], kWhich == Products::kOneMore ? more : g[j]);
}

// Reads all gradients together: memory serves several streams faster than one after another.
template <class A, class G, int T, Products kWhich>
void products(const void* const* grads, const void* one_more, int64_t n, A* sums) {
  Lanes<A> sum[kProducts<T, kWhich>] = {};
  const G* grad[T];
  for (int k = 0; k < T; ++k) grad[k] = static_cast<const G*>(grads[k]);
  const G* one = static_cast<const G*>(one_more);
  for (int64_t i = 0; i < n; i += kLanes<A>) {
    if (kWhich != Products::kOneMore)  // these are in the cache
      for (int k = 0; k < T; ++k) prefetch(grad[k] + kAhead / sizeof(G), kLanes<A>);
    if (i + kLanes<A> <= n)
      add_products<A, G, T, kWhich>(grad, one, kLanes<A>, sum);
    else
      add_products<A, G, T, kWhich>(grad, one, n - i, sum);
    for (int k = 0; k < T; ++k) grad[k] += kLanes<A>;
    if (kWhich == Products::kOneMore) one += kLanes<A>;
  }
  for (int k = 0; k < kProducts<T, kWhich>; ++k) sums[k] = sum_of_lanes<A>(sum[k]);
}

// Adds one term to a block: its h_k to `combined`, and its gradient to its second moment, which bounds `largest`.
template <class C, class G>
MTADAM_FN void add_terms(const G* grad, C scale, const C* param, C* exp_avg_sq, C* combined, C* largest, int64_t n,
                         RowScalars<C> row) {  // a copy: the compiler must not think that a store changes it
  MTADAM_LOOP(i, n) {
    add_term(C(load(grad[i])), scale, param[i], row, exp_avg_sq[i], combined[i]);
    largest[i] = nan_max(largest[i], exp_avg_sq[i]);
  }
}

template <class C>
MTADAM_FN void max_into(C* largest, const C* by, int64_t n) {
  MTADAM_LOOP(i, n) largest[i] = nan_max(largest[i], by[i]);
}

// Prefetch distance of an update, in visits of a term in a block: a constant number of bytes for any K. At the distance
// of a block, 10 terms would evict each other from the first-level cache.
constexpr int64_t kTermsAhead = 6;

// Prefetches what visit k will read of its term, counted from this block's first visit on through the next blocks.
// Blocks are taken last to first, so the next ones lie before this one.
template <class G, class C>
MTADAM_FN void prefetch_term(const BlockArgs<C>& at, int64_t k, int64_t n, int64_t terms) {
  const int64_t offset = k / terms * kBlock;
  const int64_t term = k % terms;
  if (at.exp_avg_sq[term]) prefetch(at.exp_avg_sq[term] - offset, n);
  if (at.grad[term]) prefetch(static_cast<const G*>(at.grad[term]) - offset, n);
}

// Ends both updates: first moment, parameter, and the combined gradient where it is wanted.
template <class C, class P>
MTADAM_FN void advance(const BlockArgs<C>& at, const C* value, const C* gradient, const C* combined, const C* largest,
                       int64_t n, const RowScalars<C>& row) {
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
void mtadam_update(const BlockArgs<C>& at, int64_t n, const RowScalars<C>& row) {
  const P* param = static_cast<const P*>(at.param);
  alignas(64) C value[kBlock], combined[kBlock], largest[kBlock];
  prefetch(param - kBlock, n);
  prefetch(at.exp_avg - kBlock, n);
  MTADAM_LOOP(i, n) {
    value[i] = load(param[i]);
    combined[i] = largest[i] = C(0);
  }
  for (int64_t k = 0; k < at.terms; ++k) {
    C* exp_avg_sq = at.exp_avg_sq[k];
    if (!exp_avg_sq) continue;
    prefetch_term<G>(at, k + kTermsAhead, n, at.terms);
    if (const G* grad = static_cast<const G*>(at.grad[k]))
      add_terms(grad, at.scale[k], value, exp_avg_sq, combined, largest, n, row);
    else
      max_into(largest, exp_avg_sq, n);  // an absent term keeps its moments, and still bounds the step
    if (C* max_exp_avg_sq = at.max_exp_avg_sq[k]) {
      max_into(max_exp_avg_sq, exp_avg_sq, n);
      max_into(largest, max_exp_avg_sq, n);
    }
  }
  advance<C, P>(at, value, combined, combined, largest, n, row);
}

template <class C, class P, class G>
void combined_adam(const BlockArgs<C>& at, int64_t n, const RowScalars<C>& row) {
  const P* param = static_cast<const P*>(at.param);
  C* exp_avg_sq = at.exp_avg_sq[0];
  alignas(64) C value[kBlock], combined[kBlock], gradient[kBlock];
  prefetch(param - kBlock, n);
  prefetch(at.exp_avg - kBlock, n);
  prefetch(exp_avg_sq - kBlock, n);
  MTADAM_LOOP(i, n) {
    value[i] = load(param[i]);
    combined[i] = C(0);
  }
  for (int64_t k = 0; k < at.terms; ++k)
    if (const G* grad = static_cast<const G*>(at.grad[k])) {
      const C weight = at.scale[k];
      prefetch(grad - kBlock, n);
      MTADAM_LOOP(i, n) combined[i] = add_weighted(combined[i], C(load(grad[i])), weight);
    }
  const C grad_sign = row.grad_sign, decay = row.l2_decay, beta2 = row.beta2, one_minus_beta2 = row.one_minus_beta2;
  MTADAM_LOOP(i, n) {
    gradient[i] = balanced_gradient(combined[i], grad_sign, value[i], decay);
    exp_avg_sq[i] = second_moment(exp_avg_sq[i], gradient[i], beta2, one_minus_beta2);
  }
  if (C* max_exp_avg_sq = at.max_exp_avg_sq[0]) max_into(max_exp_avg_sq, exp_avg_sq, n);
  const C* largest = at.max_exp_avg_sq[0] ? at.max_exp_avg_sq[0] : exp_avg_sq;
  advance<C, P>(at, value, gradient, combined, largest, n, row);
}

// The functions for 1 to kGradsPerPass gradients.
#define MTADAM_SUMS(of, A, G) \
  {products<A, G, 1, of>, products<A, G, 2, of>, products<A, G, 3, of>, products<A, G, 4, of>}

#define MTADAM_FLOAT_SUMS(of, A) {{}, MTADAM_SUMS(of, A, float), MTADAM_SUMS(of, A, BFloat16), MTADAM_SUMS(of, A, Half)}

// The functions for float32 arithmetic and the storage types that go with it.
#define MTADAM_UPDATES(of)                                                                                          \
  {                                                                                                                 \
    {}, {nullptr, of<float, float, float>}, {nullptr, of<float, BFloat16, float>, of<float, BFloat16, BFloat16>}, { \
      nullptr, of<float, Half, float>, nullptr, of<float, Half, Half>                                               \
    }                                                                                                               \
  }

}  // namespace

}  // namespace mtadam::cpu

// One object of functions per instruction set. The build names it: MTADAM_ISA is baseline, avx2 or avx512.
namespace mtadam::cpu::MTADAM_ISA {

extern const Blocks<double> float64;
const Blocks<double> float64 = {
    {MTADAM_SUMS(Products::kSquares, double, double)}, {MTADAM_SUMS(Products::kPairs, double, double)},
    {MTADAM_SUMS(Products::kOneMore, double, double)}, {{mtadam_update<double, double, double>}},
    {{combined_adam<double, double, double>}},
};

extern const Blocks<float> float32;
const Blocks<float> float32 = {
    MTADAM_FLOAT_SUMS(Products::kSquares, float),
    MTADAM_FLOAT_SUMS(Products::kPairs, double),
    MTADAM_FLOAT_SUMS(Products::kOneMore, double),
    MTADAM_UPDATES(mtadam_update),
    MTADAM_UPDATES(combined_adam),
};

}  // namespace mtadam::cpu::MTADAM_ISA
