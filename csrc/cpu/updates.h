// The updates of some elements of one row.
#pragma once

#include <algorithm>

#include "blocks.h"
#include "vectors.h"

namespace mtadam::cpu {
namespace {

// Elements that an update takes at a time: few enough for the registers, and for all streams to advance together.
template <class C>
constexpr int64_t kBlock = std::min(2 * kLineBytes, 4 * kRegisterBytes) / sizeof(C);

// The most terms that an update takes together, each with instructions of its own: the hardware follows a dozen streams
// of memory, and tells them apart by the instructions that read them.
constexpr int kTermsPerPass = 5;

// Elements over which an update takes some terms, then the next: what it keeps of them stays in a first-level cache.
constexpr int64_t kElementsPerPass = 512;

// How far ahead, in bytes, the streams of an update are prefetched.
constexpr int64_t kAhead = 1024;

// N vectors (or, with V = C, numbers) of one stream, from element i on.
template <int N, class V, class T>
class Stream {
 public:
  MTADAM_FN Stream(T* base, int64_t i) : at_(base + i) {
    for (int64_t byte = 0; byte < int64_t(N * kElements<V> * sizeof(T)); byte += kLineBytes)
      __builtin_prefetch(reinterpret_cast<const char*>(at_) + kAhead + byte);
  }
  MTADAM_FN V operator[](int j) const { return load_as<V>(at_ + j * kElements<V>); }
  MTADAM_FN void set(int j, const V& value) const { store_as(at_ + j * kElements<V>, value); }

 private:
  T* at_;
};

// Raises AMSGrad's maxima to the second moments, and these to the maxima.
template <int N, class V, class C>
MTADAM_FN void raise(const Stream<N, V, C>& max_exp_avg_sq, V (&exp_avg_sq)[N]) {
  MTADAM_EACH(j, N) max_exp_avg_sq.set(j, exp_avg_sq[j] = nan_max(max_exp_avg_sq[j], exp_avg_sq[j]));
}

// Ends both updates: first moment, parameter, and the combined gradient where it is wanted.
template <class P, int N, class V, class C>
MTADAM_FN void advance(const RowArgs<C>& at, int64_t i, const Stream<N, V, P>& param, const V (&value)[N],
                       const V (&gradient)[N], const V (&combined)[N], const V (&largest)[N],
                       const RowScalars<V>& row) {
  const Stream<N, V, C> exp_avg(at.exp_avg, i);
  MTADAM_EACH(j, N) {
    const V moment = first_moment(exp_avg[j], gradient[j], row.beta1, row.one_minus_beta1);
    exp_avg.set(j, moment);
    param.set(j, updated_param(value[j], moment, largest[j], row.factors));
  }
  if (!at.combined) return;
  const Stream<N, V, P> out(static_cast<P*>(at.combined), i);
  MTADAM_EACH(j, N) out.set(j, combined[j]);
}

// Some terms of a row, [first, last).
struct Terms {
  int64_t first, last;
};

// An update adds up some numbers of all terms, kSums per element, and then ends the step with them.
template <class P, class G>
struct MTAdamUpdate {
  // The total of the second moments is NaN if one of them is, and costs less than to ask each.
  enum { kCombined, kLargest, kTotal, kSums };

  template <int N, class V, class C>
  MTADAM_FN static void add(const RowArgs<C>& at, int64_t i, Terms terms, const RowScalars<V>& row,
                            V (&sum)[kSums][N]) {
    const Stream<N, V, P> param(static_cast<P*>(at.param), i);
    V value[N];
    MTADAM_EACH(j, N) value[j] = param[j];
    MTADAM_EACH(n, kTermsPerPass) {
      const int64_t k = terms.first + n;
      if (k >= terms.last || !at.exp_avg_sq[k]) continue;
      const Stream<N, V, C> exp_avg_sq(at.exp_avg_sq[k], i);
      V moment[N];
      MTADAM_EACH(j, N) moment[j] = exp_avg_sq[j];
      if (at.grad[k]) {
        const Stream<N, V, const G> grad(static_cast<const G*>(at.grad[k]), i);
        const V scale = broadcast<V>(at.scale[k]);
        MTADAM_EACH(j, N) {
          add_term(grad[j], scale, value[j], row, moment[j], sum[kCombined][j]);
          exp_avg_sq.set(j, moment[j]);
        }
      }  // else an absent term, which keeps its moments, and still bounds the step
      if (at.max_exp_avg_sq[k]) raise(Stream<N, V, C>(at.max_exp_avg_sq[k], i), moment);
      MTADAM_EACH(j, N) {
        sum[kLargest][j] = moment[j] > sum[kLargest][j] ? moment[j] : sum[kLargest][j];
        sum[kTotal][j] += moment[j];
      }
    }
  }

  template <int N, class V, class C>
  MTADAM_FN static void end(const RowArgs<C>& at, int64_t i, const RowScalars<V>& row, const V (&sum)[kSums][N]) {
    const Stream<N, V, P> param(static_cast<P*>(at.param), i);
    V value[N], largest[N];
    MTADAM_EACH(j, N) {
      value[j] = param[j];
      largest[j] = sum[kTotal][j] != sum[kTotal][j] ? sum[kTotal][j] : sum[kLargest][j];
    }
    advance(at, i, param, value, sum[kCombined], sum[kCombined], largest, row);
  }
};

template <class P, class G>
struct CombinedAdam {
  enum { kCombined, kSums };

  template <int N, class V, class C>
  MTADAM_FN static void add(const RowArgs<C>& at, int64_t i, Terms terms, const RowScalars<V>&, V (&sum)[kSums][N]) {
    MTADAM_EACH(n, kTermsPerPass) {
      const int64_t k = terms.first + n;
      if (k >= terms.last || !at.grad[k]) continue;
      const Stream<N, V, const G> grad(static_cast<const G*>(at.grad[k]), i);
      const V weight = broadcast<V>(at.scale[k]);
      MTADAM_EACH(j, N) sum[kCombined][j] = add_weighted(sum[kCombined][j], grad[j], weight);
    }
  }

  template <int N, class V, class C>
  MTADAM_FN static void end(const RowArgs<C>& at, int64_t i, const RowScalars<V>& row, const V (&sum)[kSums][N]) {
    const Stream<N, V, P> param(static_cast<P*>(at.param), i);
    const Stream<N, V, C> exp_avg_sq(at.exp_avg_sq[0], i);
    V value[N], gradient[N], largest[N];
    MTADAM_EACH(j, N) {
      value[j] = param[j];
      gradient[j] = balanced_gradient(sum[kCombined][j], row.grad_sign, value[j], row.l2_decay);
      largest[j] = second_moment(exp_avg_sq[j], gradient[j], row.beta2, row.one_minus_beta2);
      exp_avg_sq.set(j, largest[j]);
    }
    if (at.max_exp_avg_sq[0]) raise(Stream<N, V, C>(at.max_exp_avg_sq[0], i), largest);
    advance(at, i, param, value, gradient, sum[kCombined], largest, row);
  }
};

template <class V, class C>
MTADAM_FN RowScalars<V> broadcast(const RowScalars<C>& row) {
  const auto all = [](C value) { return broadcast<V>(value); };
  const StepFactors<C>& f = row.factors;
  return {all(row.grad_sign),
          all(row.beta1),
          all(row.one_minus_beta1),
          all(row.beta2),
          all(row.one_minus_beta2),
          all(row.l2_decay),
          {all(f.step_size), all(f.inv_correction2), all(f.eps), all(f.decay), all(f.unscale)}};
}

// Takes some terms of N vectors from element i on. `kept` has the sums of the terms before, and receives them unless
// these terms are the last.
template <class Update, int N, class V, class C>
MTADAM_FN void take(const RowArgs<C>& at, int64_t i, Terms terms, const RowScalars<V>& row, C* kept) {
  constexpr int kSums = Update::kSums;
  const auto kept_at = [&](int s, int j) { return kept + s * kElementsPerPass + j * kElements<V>; };
  V sum[kSums][N];
  if (terms.first > 0)
    MTADAM_EACH(s, kSums) MTADAM_EACH(j, N) sum[s][j] = load_as<V>(kept_at(s, j));
  else
    MTADAM_EACH(s, kSums) MTADAM_EACH(j, N) sum[s][j] = V{};
  Update::add(at, i, terms, row, sum);
  if (terms.last == at.terms)
    Update::end(at, i, row, sum);
  else
    MTADAM_EACH(s, kSums) MTADAM_EACH(j, N) store_as(kept_at(s, j), sum[s][j]);
}

// Element-wise, so that its result depends neither on the instruction set nor on where it begins.
template <template <class, class> class Of, class P, class G, class C>
void update(const RowArgs<C>& at, int64_t begin, int64_t end, const RowScalars<C>& row) {
  using Update = Of<P, G>;
  constexpr int kVectors = kBlock<C> / kWidth<C>;
  const RowScalars<Vector<C>> rows = broadcast<Vector<C>>(row);
  const int64_t passes = (at.terms + kTermsPerPass - 1) / kTermsPerPass;
  alignas(kLineBytes) C kept[Update::kSums * kElementsPerPass];
  for (; begin < end; begin += kElementsPerPass) {
    const int64_t last = std::min(begin + kElementsPerPass, end);
    for (int64_t pass = 0; pass < passes; ++pass) {
      const Terms terms{at.terms * pass / passes, at.terms * (pass + 1) / passes};
      int64_t i = begin;
      for (; i + kBlock<C> <= last; i += kBlock<C>) take<Update, kVectors>(at, i, terms, rows, kept + i - begin);
      for (; i + kWidth<C> <= last; i += kWidth<C>) take<Update, 1>(at, i, terms, rows, kept + i - begin);
      for (; i < last; ++i) take<Update, 1>(at, i, terms, row, kept + i - begin);
    }
  }
}

}  // namespace
}  // namespace mtadam::cpu
