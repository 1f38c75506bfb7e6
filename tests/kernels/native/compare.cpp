#include "compare.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <optional>
#include <vector>

#include "check.h"

using oracle::Bounded;
using oracle::Fault;
using oracle::Wide;

namespace {

constexpr const char* kNames[kQuantities] = {"grad",   "norm",    "running", "scale", "combined",
                                             "second", "maximum", "exp_avg", "param", "count"};

template <class C>
class Comparison {
 public:
  Comparison(const Problem<C>& before, const Problem<C>& after, Fault fault)
      : before_(before), after_(after), fault_(fault) {}

  Rejected run() {
    for (row_ = 0; row_ < before_.rows.size(); ++row_) {
      term_norms();
      balance();
      old_row().is_reached() ? mtadam_update() : left_alone();
      for (int64_t k = 0; k < before_.terms; ++k) expect_same(kGrad, old_row().grad[k], new_row().grad[k]);
    }
    return rejected_;
  }

 private:
  const Parameter& old_row() const { return before_.rows[row_]; }
  const Parameter& new_row() const { return after_.rows[row_]; }

  // The first rejection is described, the others, which may be many, only counted.
  template <class Describe>
  void reject(Quantity quantity, const Describe& describe) {
    ++rejected_.of[quantity];
    if (!rejected_.first.empty()) return;
    const Tensor& param = new_row().param;
    rejected_.first = std::string(kNames[quantity]) + " of row " + std::to_string(row_) + ", " +
                      std::to_string(param.numel()) + " elements of type " + std::to_string(param.type()) + describe();
  }

  void expect(Quantity quantity, int64_t index, int64_t storage, Wide<C> got, Bounded<C> want) {
    if (oracle::accepts(storage, got, want)) return;
    reject(quantity, [&] {
      char what[160];
      std::snprintf(what, sizeof what, ", at %lld: %.20Lg, expected %.20Lg +- %.3Lg", static_cast<long long>(index),
                    static_cast<long double>(got), static_cast<long double>(want.value),
                    static_cast<long double>(want.error));
      return std::string(what);
    });
  }

  void expect(Quantity quantity, const Tensor& got, int64_t i, Bounded<C> want) {
    expect(quantity, i, got.type(), got[i], want);
  }

  template <class T>
  void expect_same(Quantity quantity, const T& was, const T& is) {
    if (!(was == is)) reject(quantity, [] { return ": changed"; });
  }

  Bounded<C> norm_of(const std::optional<Tensor>& grad) const {
    if (!grad) return oracle::exact<C>(std::numeric_limits<C>::quiet_NaN());
    std::vector<Wide<C>> values(grad->numel());
    for (int64_t i = 0; i < grad->numel(); ++i) values[i] = (*grad)[i];
    return oracle::term_norm<C>(values, fault_);
  }

  void term_norms() {
    for (int64_t k = 0; k < before_.terms; ++k)
      expect(kNorm, k, kArithmetic<C>, after_.norm[after_.pair(row_, k)], norm_of(old_row().grad[k]));
  }

  void balance() {
    std::vector<Wide<C>> running;
    for (int64_t k = 0; k < before_.terms; ++k) {
      const size_t pair = before_.pair(row_, k);
      expect(kRunning, k, kArithmetic<C>, after_.running[pair],
             oracle::running_norm<C>(before_.running[pair], after_.norm[pair], before_.group(row_), fault_));
      running.push_back(after_.running[pair]);
    }
    const auto scale = oracle::scales<C>(running, before_.weight.data() + old_row().group * before_.terms, fault_);
    for (int64_t k = 0; k < before_.terms; ++k)
      expect(kScale, k, kArithmetic<C>, after_.scale[after_.pair(row_, k)], scale[k]);
  }

  oracle::Element<C> element(int64_t i) const {
    const Parameter& row = old_row();
    oracle::Element<C> at;
    at.param = row.param[i];
    at.exp_avg = row.exp_avg[i];
    at.terms = before_.terms;
    for (int64_t k = 0; k < at.terms; ++k) {
      const auto value = [&](const std::optional<Tensor>& tensor) { return Wide<C>(tensor ? (*tensor)[i] : 0.0); };
      at.term[k] = {row.second[k].has_value(),  row.grad[k].has_value(),
                    row.maximum[k].has_value(), after_.scale[after_.pair(row_, k)],
                    value(row.grad[k]),         value(row.second[k]),
                    value(row.maximum[k])};
    }
    return at;
  }

  void mtadam_update() {
    const Wide<C> step = before_.count[row_] + 1;
    const auto factors = oracle::factors<C>(before_.group(row_), double(step), fault_);
    const Parameter& row = new_row();
    for (int64_t i = 0; i < row.param.numel(); ++i) {
      const auto want = oracle::mtadam_update(factors, element(i), fault_);
      expect(kExpAvg, row.exp_avg, i, want.exp_avg);
      expect(kParam, row.param, i, want.param);
      if (row.combined) expect(kCombined, *row.combined, i, want.combined);
      for (int64_t k = 0; k < before_.terms; ++k) {
        if (row.second[k]) expect(kSecond, *row.second[k], i, want.second[k]);
        if (row.maximum[k]) expect(kMaximum, *row.maximum[k], i, want.maximum[k]);
      }
    }
    expect(kCount, 0, kArithmetic<C>, after_.count[row_],
           oracle::exact<C>(step - (fault_ == Fault::kCountStandsStill)));
  }

  // A parameter that no term reaches.
  void left_alone() {
    expect_same(kParam, old_row().param, new_row().param);
    expect_same(kExpAvg, old_row().exp_avg, new_row().exp_avg);
    expect_same(kCombined, old_row().combined, new_row().combined);
    expect_same(kSecond, old_row().second, new_row().second);
    expect_same(kMaximum, old_row().maximum, new_row().maximum);
    expect_same(kCount, before_.count[row_], after_.count[row_]);
  }

  const Problem<C>& before_;
  const Problem<C>& after_;
  const Fault fault_;
  size_t row_ = 0;
  Rejected rejected_;
};

}  // namespace

template <class C>
Rejected compare(const Problem<C>& before, const Problem<C>& after, Fault fault) {
  return Comparison<C>(before, after, fault).run();
}

template <class C>
void check_accepted(const Problem<C>& before, const Problem<C>& after) {
  const Rejected rejected = compare(before, after, Fault::kNone);
  if (!rejected.first.empty()) std::fprintf(stderr, "%s\n", rejected.first.c_str());
  CHECK(rejected.first.empty());
}

#define INSTANTIATE(C)                                                    \
  template Rejected compare(const Problem<C>&, const Problem<C>&, Fault); \
  template void check_accepted(const Problem<C>&, const Problem<C>&);
INSTANTIATE(double)
INSTANTIATE(float)
