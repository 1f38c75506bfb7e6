// The inner loops of the CPU kernels, over one block of one tensor. `blocks.cpp` is compiled once per instruction set;
// the best set that the machine has is taken at run time.
#pragma once

#include <cstdint>

#include "../launch.h"
#include "../update_math.h"

namespace mtadam::cpu {

// Elements of one update block. Small, so that the streams of K terms (4 KB apart in the cache as torch allocates them)
// alternate often and all stay in the first-level cache: with 128 instead of 1,024 the step runs a third faster.
constexpr int64_t kBlock = 128;

// One parameter's step: the scalars of its row, ready for the inner loop.
template <class C>
struct RowStep {
  int64_t terms;
  const C* scale;  // [terms]
  C direction;     // -1 where the group maximizes
  C beta1, one_minus_beta1;
  C beta2, one_minus_beta2;
  C l2_decay;
  StepFactors<C> factors;
};

// Addresses of one block: null where a term is absent (grad), was never reached (second), or amsgrad is off (maximum).
// Second moments and maxima are one for each term, in combined_adam one for all.
template <class C>
struct BlockPointers {
  void* param;
  C* exp_avg;
  void* combined;           // where the combined gradient is left, or null
  const void* const* grad;  // [terms]
  C* const* second;         // [moments]
  C* const* maximum;        // [moments]
};

// A step of n <= kBlock elements; by [parameter type][gradient type], null where the pair is not supported.
template <class C>
using Updates = void (*[kStorageTypes][kStorageTypes])(const BlockPointers<C>& at, int64_t n, const RowStep<C>& row);

// Gradients whose products are summed together, at most.
constexpr int64_t kTogether = 4;

// Elements of each that are summed at once, in the arithmetic type: 4 KB, so that those of ten terms stay in a
// first-level cache.
constexpr int64_t kTile = 1024;

// Sums over n elements of products of some gradients, in an order that depends on n alone.
template <class C>
using Sums = void (*)(const void* const* grads, const void* one_more, int64_t n, C* sums);

template <class C>
struct Blocks {
  // By gradient type and number of gradients (less one): the squares; the products of all pairs, (0, 0), (1, 0), (1,
  // 1), (2, 0), ...; those with one gradient more, which like them is in the cache.
  Sums<C> squares[kStorageTypes][kTogether], pairs[kStorageTypes][kTogether], with_one[kStorageTypes][kTogether];
  Updates<C> mtadam_update, combined_adam;
};

// The loops for this machine. The environment's ATEN_CPU_CAPABILITY (default, avx2, avx512) lowers
// the choice, as it does for torch.
template <class C>
const Blocks<C>& blocks();

// The name of that choice: "default", "avx2" or "avx512".
const char* instruction_set();

}  // namespace mtadam::cpu
