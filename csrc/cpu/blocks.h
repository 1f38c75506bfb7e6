// The inner loops of the CPU kernels, over some elements of one row. `blocks.cpp` is compiled once per instruction set;
// the best set that the machine has is taken at run time.
#pragma once

#include <cstdint>

#include "../launch.h"
#include "../update_math.h"

namespace mtadam::cpu {

// The addresses of one row, and what multiplies its gradients. Addresses are null where a term is absent (grad), was
// never reached (exp_avg_sq), or AMSGrad is off (max_exp_avg_sq). Second moments and maxima are one for each term, in
// combined_adam one for all.
template <class C>
struct RowArgs {
  int64_t terms;
  const C* scale;  // [terms]
  void* param;
  C* exp_avg;
  void* combined;            // where to leave the combined gradient, or null
  const void* const* grad;   // [terms]
  C* const* exp_avg_sq;      // [moments]
  C* const* max_exp_avg_sq;  // [moments]
};

// Updates of elements [begin, end), by [parameter type][gradient type], null where the pair is not supported.
template <class C>
using Updates = void (*[kStorageTypes][kStorageTypes])(const RowArgs<C>& at, int64_t begin, int64_t end,
                                                       const RowScalars<C>& row);

// The most gradients whose products one pass sums.
constexpr int64_t kGradsPerPass = 4;

// Elements of each gradient that are summed in the arithmetic type; sums of those are double. The products of all pairs
// go through as many at a time, 4 KB, so that those of ten terms stay in a first-level cache.
constexpr int64_t kElementsPerTile = 1024;

// Sums products of some gradients over elements [begin, end), in an order that depends on their number alone.
using Sums = void (*)(const void* const* grads, const void* const* others, int64_t begin, int64_t end, double* sums);

template <class C>
struct Blocks {
  // By gradient type and number of gradients (less one): their squares.
  Sums squares[kStorageTypes][kGradsPerPass];
  // The products of all pairs, (0, 0), (1, 0), (1, 1), (2, 0), ...; the products with kGradsPerPass others, (0, 0),
  // (0, 1), ..., (1, 0), ..., when all are in the cache. In double: those of large float32 gradients would overflow,
  // and those of small ones vanish.
  Sums pairs[kStorageTypes][kGradsPerPass], with_others[kStorageTypes][kGradsPerPass];
  Updates<C> mtadam_update, combined_adam;
};

// Returns the loops for this machine. The environment's ATEN_CPU_CAPABILITY (default, avx2, avx512) lowers the choice,
// as it does for torch.
template <class C>
const Blocks<C>& blocks();

// Returns the name of that choice: "default", "avx2" or "avx512".
const char* instruction_set();

}  // namespace mtadam::cpu
