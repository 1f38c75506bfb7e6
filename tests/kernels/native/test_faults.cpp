#include <cstdio>
#include <iterator>
#include <vector>

#include "check.h"
#include "compare.h"
#include "tests.h"

using oracle::Fault;

namespace {

struct Control {
  Fault fault;
  Quantity seen_in;
  const char* name;
};

constexpr Control kControls[] = {
    {Fault::kNormMissesLast, kNorm, "last element left out of the norm"},
    {Fault::kNoFirstNonzero, kRunning, "running norm does not wait"},
    {Fault::kAbsentIsZero, kRunning, "absent counts as zero (running norm)"},
    {Fault::kAbsentIsZero, kSecond, "absent counts as zero (second moment)"},
    {Fault::kLastAnchor, kScale, "wrong anchor"},
    {Fault::kNoWeights, kScale, "no term weights"},
    {Fault::kNoMaximize, kCombined, "maximize ignored"},
    {Fault::kDecayOnce, kCombined, "L2 decay once"},
    {Fault::kNoAmsgrad, kParam, "amsgrad ignored"},
    {Fault::kSumOfSeconds, kParam, "maximum replaced by the sum"},
    {Fault::kAbsentUnbounded, kParam, "absent term does not bound"},
    {Fault::kNoBiasCorrection, kParam, "no bias correction"},
    {Fault::kNoEpsilon, kParam, "no eps"},
    {Fault::kLearningRate, kParam, "lr +1 %"},
    {Fault::kDecayAfterUpdate, kParam, "decay after the update"},
    {Fault::kCountStandsStill, kCount, "step count stands still"},
};

// Every mistake is seen in every storage, not only in the precise ones.
template <class C>
void test_storage(const Storage& storage) {
  std::vector<Plan> plans;
  for (int64_t r = 0; r < kGroups; ++r) plans.push_back({r % 2 ? 129 : 17, storage});
  Problem<C> problem = make_problem<C>(5, Placement::kHeap, plans);
  int64_t seen[std::size(kControls)] = {};
  for (int64_t step = 0; step < 3; ++step) {
    give_gradients(problem, step);
    const Problem<C> before = problem;
    run_fused(problem);
    check_accepted(before, problem);
    for (size_t c = 0; c < std::size(kControls); ++c)
      seen[c] += compare(before, problem, kControls[c].fault).of[kControls[c].seen_in];
  }
  for (size_t c = 0; c < std::size(kControls); ++c) {
    if (!seen[c])
      std::fprintf(stderr, "storage %d,%d: not seen: %s\n", int(storage.param), int(storage.grad), kControls[c].name);
    CHECK(seen[c] > 0);
  }
}

}  // namespace

template <class C>
void test_faults() {
  for (const Storage& storage : storages<C>()) test_storage<C>(storage);
}
template void test_faults<double>();
template void test_faults<float>();
