// The kernels of CombinedAdam against their formulas in wider arithmetic.
#include <cmath>
#include <cstdint>
#include <iterator>
#include <vector>

#include "check.h"
#include "oracle.h"
#include "problem.h"
#include "random.h"
#include "tests.h"

namespace {

using oracle::Bounded;
using oracle::exact;
using oracle::Wide;

// Mistakes that the formulas here can be told to make, to prove that the comparison sees them.
enum class Slip { kNone, kWeight, kDirection, kDecayInCombined, kMaximumUnused, kOneElementLess };
constexpr Slip kSlips[] = {Slip::kWeight, Slip::kDirection, Slip::kDecayInCombined, Slip::kMaximumUnused,
                           Slip::kOneElementLess};

// How many results were rejected.
struct Tally {
  int64_t seen = 0, rejected = 0;

  template <class C>
  void expect(int64_t storage, double got, Bounded<C> want) {
    ++seen;
    rejected += !oracle::accepts<C>(storage, got, want);
  }
};

// A problem with gradients, and one second moment per reached row, whose maximum exists where the group says so.
template <class C>
void prepare(Problem<C>& problem, int64_t step) {
  give_gradients(problem, step);
  for (size_t r = 0; r < problem.rows.size(); ++r) {
    Parameter& row = problem.rows[r];
    for (int64_t k = 0; k < problem.terms; ++k)
      problem.scale[problem.pair(r, k)] = C(Random({int64_t(r), k, step, 8}).between(-1, 2));
    if (!row.is_reached()) continue;
    const auto make = [&](std::optional<Tensor>& tensor) {
      if (!tensor) tensor.emplace(kArithmetic<C>, row.param.numel(), problem.placement);
    };
    make(row.second[0]);
    if (row.group & 1) make(row.maximum[0]);
  }
}

template <class C>
std::vector<double> run(Problem<C>& problem) {
  Tables<C> tables(problem);
  mtadam::Step<C> step = tables.step();
  std::vector<double> gram(problem.rows.size() * problem.terms * problem.terms, -1.0);
  step.moments = 1;
  step.gram = gram.data();
  mtadam::cpu::term_gram(step);
  mtadam::cpu::combined_adam(step);
  return gram;
}

// Products round in C, and sums of a thousand of them at most; 64 units hold them.
template <class C>
void compare_gram(const Problem<C>& problem, const std::vector<double>& gram, Slip slip, Tally& tally) {
  for (size_t r = 0; r < problem.rows.size(); ++r)
    for (int64_t k = 0; k < problem.terms; ++k)
      for (int64_t j = 0; j < problem.terms; ++j) {
        const auto& one = problem.rows[r].grad[k];
        const auto& other = problem.rows[r].grad[j];
        Wide<C> sum = 0, size = 0;
        const int64_t n = one && other ? one->numel() - (slip == Slip::kOneElementLess) : 0;
        for (int64_t i = 0; i < n; ++i) {
          sum += Wide<C>((*one)[i]) * Wide<C>((*other)[i]);
          size += std::fabs(Wide<C>((*one)[i]) * Wide<C>((*other)[i]));
        }
        const Bounded<C> want{sum, 64 * oracle::kUnit<C> * size + std::numeric_limits<C>::min()};
        tally.expect<C>(kArithmetic<C>, gram[(r * problem.terms + k) * problem.terms + j], want);
      }
}

template <class C>
void compare_row(const Problem<C>& before, const Problem<C>& after, size_t r, Slip slip, Tally& tally) {
  const Parameter &old = before.rows[r], &now = after.rows[r];
  const auto f = oracle::factors<C>(before.group(r), before.count[r] + 1.0, oracle::Fault::kNone);
  for (int64_t i = 0; i < old.param.numel(); ++i) {
    const Bounded<C> p = exact<C>(old.param[i]);
    Bounded<C> combined = exact<C>(0);
    for (int64_t k = 0; k < before.terms; ++k) {
      const Wide<C> weight = before.scale[before.pair(r, k)] * Wide<C>(slip == Slip::kWeight && k == 0 ? 1.01 : 1);
      if (old.grad[k]) combined = combined + exact<C>(weight) * exact<C>((*old.grad[k])[i]);
    }
    const Wide<C> direction = slip == Slip::kDirection ? 1 : f.direction;
    const Bounded<C> decayed = exact<C>(direction) * combined + f.l2_decay * p;
    const Bounded<C> second = f.beta2 * exact<C>((*old.second[0])[i]) + f.one_minus_beta2 * (decayed * decayed);
    Bounded<C> bound = second;
    if (old.maximum[0]) {
      bound = oracle::larger(exact<C>((*old.maximum[0])[i]), second);
      tally.expect<C>(kArithmetic<C>, (*now.maximum[0])[i], bound);
      if (slip == Slip::kMaximumUnused) bound = second;
    }
    const Bounded<C> exp_avg = f.beta1 * exact<C>(old.exp_avg[i]) + f.one_minus_beta1 * decayed;
    const Bounded<C> change = f.step_size * exp_avg / (root(bound) / f.root_correction2 + f.eps);
    tally.expect<C>(kArithmetic<C>, (*now.second[0])[i], second);
    tally.expect<C>(kArithmetic<C>, now.exp_avg[i], exp_avg);
    tally.expect<C>(now.param.type(), now.param[i], p - (change + f.decoupled_decay * p));
    if (now.combined)
      tally.expect<C>(now.combined->type(), (*now.combined)[i], slip == Slip::kDecayInCombined ? decayed : combined);
  }
}

template <class C>
Tally compare(const Problem<C>& before, const Problem<C>& after, const std::vector<double>& gram, Slip slip) {
  Tally tally;
  compare_gram(before, gram, slip, tally);
  for (size_t r = 0; r < before.rows.size(); ++r) {
    const bool reached = before.rows[r].is_reached();
    CHECK(after.count[r] == before.count[r] + float(reached));
    if (reached)
      compare_row(before, after, r, slip, tally);
    else
      CHECK(before.rows[r].param == after.rows[r].param && before.rows[r].exp_avg == after.rows[r].exp_avg);
  }
  return tally;
}

// Every size in every storage, and at least 16 parameters, so that their groups have every flag that counts here.
template <class C>
std::vector<Plan> make_plans() {
  std::vector<Plan> plans;
  for (int copy = 0; copy < (storages<C>().size() == 1 ? 3 : 1); ++copy)
    for (const Storage& storage : storages<C>())
      for (const int64_t size : {0, 1, 127, 129, 1025, 4097, 9000}) plans.push_back({size, storage});
  return plans;
}

}  // namespace

template <class C>
uint64_t test_combined() {
  struct Case {
    int64_t terms;
    Placement placement;
  };
  Hash hash;
  int64_t rejected[std::size(kSlips)] = {};
  for (const auto& [terms, placement] : {Case{1, Placement::kHeap}, Case{3, Placement::kUnaligned},
                                         Case{5, Placement::kBeforeGuard}, Case{2, Placement::kAfterGuard}}) {
    Problem<C> problem = make_problem<C>(terms, placement, make_plans<C>());
    for (int64_t step = 0; step < 2; ++step) {
      prepare(problem, step);
      const Problem<C> before = problem;
      const std::vector<double> gram = run(problem);
      const Tally tally = compare(before, problem, gram, Slip::kNone);
      CHECK(tally.rejected == 0);
      CHECK(tally.seen > 10000);
      for (size_t i = 0; i < std::size(kSlips); ++i) rejected[i] += compare(before, problem, gram, kSlips[i]).rejected;
      hash.add(gram.data(), int64_t(gram.size() * sizeof(double)));
      const uint64_t results = hash_of(problem);
      hash.add(&results, sizeof results);
    }
  }
  for (const int64_t of_slip : rejected) CHECK(of_slip > 50);
  return hash.value();
}
template uint64_t test_combined<double>();
template uint64_t test_combined<float>();
