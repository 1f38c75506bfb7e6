// The updates of some elements of one row.
#pragma once

#include "blocks.h"
#include "vectors.h"

namespace mtadam::cpu {
namespace {

// Vectors of each stream that an update takes before the next stream's: enough for the hardware to follow dozens of
// streams, and few enough for the registers.
constexpr int kPerBlock = 8;

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

template <class P, class G>
struct MTAdamUpdate {
  // Takes all terms of some elements before the next elements: sums and maxima stay in registers, and all streams run
  // forwards together, as the hardware follows them best.
  template <int N, class V, class C>
  MTADAM_FN static void run(const RowArgs<C>& at, int64_t i, const RowScalars<V>& row) {
    const Stream<N, V, P> param(static_cast<P*>(at.param), i);
    V value[N], combined[N] = {}, largest[N] = {};
    V total[N] = {};  // of the second moments: it is NaN if one of them is, and costs less than to ask each
    MTADAM_EACH(j, N) value[j] = param[j];
    for (int64_t k = 0; k < at.terms; ++k) {
      if (!at.exp_avg_sq[k] || !at.grad[k]) continue;
      const Stream<N, V, C> exp_avg_sq(at.exp_avg_sq[k], i);
      const Stream<N, V, const G> grad(static_cast<const G*>(at.grad[k]), i);
      const V scale = broadcast<V>(at.scale[k]);
      MTADAM_EACH(j, N) {
        V moment = exp_avg_sq[j];
        add_term(grad[j], scale, value[j], row, moment, combined[j]);
        exp_avg_sq.set(j, moment);
        largest[j] = moment > largest[j] ? moment : largest[j];
        total[j] += moment;
      }
    }
    MTADAM_EACH(j, N) largest[j] = total[j] != total[j] ? total[j] : largest[j];
    for (int64_t k = 0; k < at.terms; ++k) {  // an absent term keeps its moments, and still bounds the step
      if (!at.exp_avg_sq[k] || (at.grad[k] && !at.max_exp_avg_sq[k])) continue;
      const Stream<N, V, C> exp_avg_sq(at.exp_avg_sq[k], i);
      V bound[N];
      MTADAM_EACH(j, N) bound[j] = exp_avg_sq[j];
      if (at.max_exp_avg_sq[k]) raise(Stream<N, V, C>(at.max_exp_avg_sq[k], i), bound);
      MTADAM_EACH(j, N) largest[j] = nan_max(largest[j], bound[j]);
    }
    advance(at, i, param, value, combined, combined, largest, row);
  }
};

template <class P, class G>
struct CombinedAdam {
  template <int N, class V, class C>
  MTADAM_FN static void run(const RowArgs<C>& at, int64_t i, const RowScalars<V>& row) {
    V value[N], combined[N] = {}, gradient[N], largest[N];
    for (int64_t k = 0; k < at.terms; ++k) {
      if (!at.grad[k]) continue;
      const Stream<N, V, const G> grad(static_cast<const G*>(at.grad[k]), i);
      const V weight = broadcast<V>(at.scale[k]);
      MTADAM_EACH(j, N) combined[j] = add_weighted(combined[j], grad[j], weight);
    }
    const Stream<N, V, P> param(static_cast<P*>(at.param), i);
    const Stream<N, V, C> exp_avg_sq(at.exp_avg_sq[0], i);
    MTADAM_EACH(j, N) {
      value[j] = param[j];
      gradient[j] = balanced_gradient(combined[j], row.grad_sign, value[j], row.l2_decay);
      largest[j] = second_moment(exp_avg_sq[j], gradient[j], row.beta2, row.one_minus_beta2);
      exp_avg_sq.set(j, largest[j]);
    }
    if (at.max_exp_avg_sq[0]) raise(Stream<N, V, C>(at.max_exp_avg_sq[0], i), largest);
    advance(at, i, param, value, gradient, combined, largest, row);
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

// Element-wise, so that its result depends neither on the instruction set nor on where it begins.
template <template <class, class> class Update, class P, class G, class C>
void update(const RowArgs<C>& at, int64_t begin, int64_t end, const RowScalars<C>& row) {
  using V = Vector<C>;
  constexpr int64_t kBlock = kPerBlock * kWidth<C>;
  const RowScalars<V> rows = broadcast<V>(row);
  int64_t i = begin;
  for (; i + kBlock <= end; i += kBlock) Update<P, G>::template run<kPerBlock>(at, i, rows);
  for (; i + kWidth<C> <= end; i += kWidth<C>) Update<P, G>::template run<1>(at, i, rows);
  for (; i < end; ++i) Update<P, G>::template run<1>(at, i, row);
}

}  // namespace
}  // namespace mtadam::cpu
