#include <cmath>
#include <cstring>
#include <optional>
#include <vector>

#include "check.h"
#include "compare.h"
#include "random.h"
#include "tests.h"

namespace {

// What the problems contained, so that a test cannot pass because its hard cases went missing.
struct Coverage {
  int64_t absent = 0, never_reached = 0, rows_left_alone = 0, zero_norms = 0, tiny_norms = 0, waiting = 0, maxima = 0,
          late = 0, combined = 0, not_combined = 0, unaligned = 0;

  template <class C>
  void add(const Problem<C>& before, const Problem<C>& after) {
    for (size_t r = 0; r < before.rows.size(); ++r) {
      const Parameter& row = before.rows[r];
      rows_left_alone += before.count[r] == after.count[r];
      ++(row.combined ? combined : not_combined);
      unaligned += row.param.address() % 16 != 0;
      for (int64_t k = 0; k < before.terms; ++k) {
        const size_t pair = before.pair(r, k);
        const bool waits = std::isnan(after.running[pair]);
        absent += row.second[k] && !row.grad[k];
        never_reached += !row.second[k];
        zero_norms += after.norm[pair] == 0;
        tiny_norms += after.norm[pair] > 0 && after.norm[pair] < oracle::kTiny;
        waiting += row.grad[k] && waits;
        maxima += row.maximum[k].has_value();
        late += row.grad[k] && std::isnan(before.running[pair]) && before.count[r] > 0;
      }
    }
  }

  void check_all() const {
    for (const int64_t seen : {absent, never_reached, rows_left_alone, zero_norms, tiny_norms, waiting, maxima, late,
                               combined, not_combined, unaligned})
      CHECK(seen >= 50);
  }
};

// Around a block (128), a chunk (4,096) and many chunks.
const std::vector<int64_t> kSmallSizes = {0, 1, 3, 127, 128, 129, 4095, 4096, 4097};
constexpr int64_t kLargeSize = 70001;

// One step of parameters of all the small sizes, each with every storage, at least 36 of them.
template <class C>
std::vector<Plan> mixed_plans() {
  std::vector<Plan> plans;
  const std::vector<Storage> all = storages<C>();
  for (size_t copy = 0; copy < (all.size() == 1 ? 4 : 1); ++copy)
    for (const Storage& storage : all)
      for (const int64_t size : kSmallSizes) plans.push_back({size, storage});
  return plans;
}

// Runs a step on copies, fused and stage by stage, and leaves the fused result, whose hash it returns.
template <class C>
uint64_t checked_step(Problem<C>& problem) {
  const Problem<C> before = problem;
  Problem<C> staged = problem;
  run_staged(staged);
  run_fused(problem);
  check_accepted(before, problem);
  const uint64_t hash = hash_of(problem);
  CHECK(hash_of(staged) == hash);
  return hash;
}

struct Case {
  int64_t terms;
  Placement placement;
  int64_t steps;
  bool has_large;  // a large parameter among the small ones, of another storage in each case
};

constexpr Case kCases[] = {
    {1, Placement::kHeap, 3, true},        {2, Placement::kHeap, 3, true},
    {5, Placement::kHeap, 3, true},        {2, Placement::kUnaligned, 3, true},
    {3, Placement::kUnaligned, 3, false},  {16, Placement::kHeap, 2, false},
    {1, Placement::kBeforeGuard, 2, true}, {3, Placement::kBeforeGuard, 3, false},
    {2, Placement::kAfterGuard, 3, false},
};

template <class C>
uint64_t test_cases() {
  Hash hash;
  Coverage coverage;
  size_t number = 0;
  for (const Case& its : kCases) {
    std::vector<Plan> plans = mixed_plans<C>();
    const Storage other = storages<C>()[number++ % storages<C>().size()];
    if (its.has_large) plans.insert(plans.begin() + 20, {kLargeSize, other});
    Problem<C> problem = make_problem<C>(its.terms, its.placement, plans);
    for (int64_t step = 0; step < its.steps; ++step) {
      give_gradients(problem, step);
      const Problem<C> before = problem;
      const uint64_t result = checked_step(problem);
      hash.add(&result, sizeof result);
      coverage.add(before, problem);
    }
  }
  coverage.check_all();
  return hash.value();
}

template <class C>
void test_empty_step() {
  Problem<C> no_rows = make_problem<C>(2, Placement::kHeap, {});
  run_fused(no_rows);
  run_staged(no_rows);
  Problem<C> no_elements = make_problem<C>(2, Placement::kHeap, {{0, storages<C>()[0]}, {0, storages<C>()[0]}});
  give_gradients(no_elements, 0);
  checked_step(no_elements);
}

// A gradient that is not finite spoils its own element, and no running norm.
template <class C>
void test_bad_gradients() {
  for (const double bad : {double(INFINITY), double(NAN)}) {
    Problem<C> problem = make_problem<C>(3, Placement::kHeap, std::vector<Plan>(8, {300, storages<C>()[0]}));
    give_gradients(problem, 0);
    checked_step(problem);
    give_gradients(problem, 1);
    for (Parameter& row : problem.rows)
      if (row.grad[0]) row.grad[0]->set(7, bad);
    const std::vector<C> running = problem.running;
    checked_step(problem);
    for (size_t r = 0; r < problem.rows.size(); ++r) {
      const Parameter& row = problem.rows[r];
      if (!row.grad[0]) continue;
      const size_t pair = problem.pair(r, 0);
      CHECK(!std::isfinite(problem.norm[pair]));
      CHECK(!std::memcmp(&running[pair], &problem.running[pair], sizeof(C)));
      CHECK(std::isnan(row.param[7]));
      CHECK(std::isfinite(row.param[8]));
      if (row.maximum[0]) CHECK(std::isnan(bad) ? std::isnan((*row.maximum[0])[7]) : (*row.maximum[0])[7] == bad);
    }
  }
}

// NaN as the bound of any term, be it a second moment or a maximum, is the largest of all: it stays, and reaches the
// parameter. In the vector loops and in what they leave over.
template <class C>
void test_nan_is_largest(std::vector<std::optional<Tensor>> Parameter::* bound, int64_t term) {
  constexpr int64_t kElements[] = {7, 299};
  Problem<C> problem = make_problem<C>(3, Placement::kHeap, std::vector<Plan>(16, {300, storages<C>()[0]}));
  give_gradients(problem, 0);
  checked_step(problem);
  give_gradients(problem, 1);
  for (Parameter& row : problem.rows)
    for (const int64_t i : kElements)
      if ((row.*bound)[term]) (*(row.*bound)[term]).set(i, NAN);
  checked_step(problem);
  int64_t maxima = 0, others = 0;
  for (const Parameter& row : problem.rows) {
    if (!row.is_reached() || !(row.*bound)[term]) continue;
    ++(row.maximum[term] ? maxima : others);
    for (const int64_t i : kElements) {
      if (row.maximum[term]) CHECK(std::isnan((*row.maximum[term])[i]));
      CHECK(std::isnan(row.param[i]));
      CHECK(std::isfinite(row.exp_avg[i]));
    }
  }
  CHECK(maxima > 2);
  CHECK(others > 2 || bound == &Parameter::maximum);
}

// A norm at the threshold counts as zero, the next larger number does not.
template <class C>
void test_threshold() {
  Problem<C> problem = make_problem<C>(2, Placement::kHeap, std::vector<Plan>(3, {1, storages<C>()[0]}));
  const C tiny = C(oracle::kTiny), above = std::nextafter(tiny, C(1));
  problem.weight.assign(problem.weight.size(), 1);
  for (const int64_t waits : {0, 1}) problem.groups[1 + waits].first_nonzero = double(waits);
  problem.norm = {tiny, 1, above, 1, tiny, above};
  mtadam::cpu::balance(Tables<C>(problem).step());
  CHECK((problem.scale == std::vector<C>{1, 1, 1, above, 1, 1}));
  CHECK(std::isnan(problem.running[4]));
  problem.running[4] = tiny;
  CHECK(problem.running == problem.norm);
}

}  // namespace

template <class C>
uint64_t test_steps() {
  test_empty_step<C>();
  test_bad_gradients<C>();
  for (int64_t term = 0; term < 3; ++term) {
    test_nan_is_largest<C>(&Parameter::second, term);
    test_nan_is_largest<C>(&Parameter::maximum, term);
  }
  test_threshold<C>();
  return test_cases<C>();
}
template uint64_t test_steps<double>();
template uint64_t test_steps<float>();
