// The comparison of a step with the oracle.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "oracle.h"
#include "problem.h"

enum Quantity { kGrad, kNorm, kRunning, kScale, kCombined, kSecond, kMaximum, kExpAvg, kParam, kCount, kQuantities };

// How many numbers of each kind a comparison rejects.
struct Rejected {
  std::array<int64_t, kQuantities> of{};
  std::string first;  // what was rejected first, in words
};

// Holds a problem after a step against the same problem before it; for double and float. Each stage is held to its own
// input, the kernel's result of the stage before, so that a bound never grows from stage to stage or from step to step.
template <class C>
Rejected compare(const Problem<C>& before, const Problem<C>& after, oracle::Fault fault);

// Nothing is rejected.
template <class C>
void check_accepted(const Problem<C>& before, const Problem<C>& after);
