// The arguments of the native kernels, and their launchers.
//
// Python fills each struct as one flat buffer of 64-bit values, in the order of the members:
// `mtadam_fused/tables/step_args.py` names them. So the module needs nothing of torch. A *row* is one parameter; a
// *pair* is one (term, row). Tables over pairs are term-major, [terms, rows]; scalars over pairs are row-major, [rows,
// terms]. There is a second moment per term, or one for all: *moments* is that number.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>

#include "update_math.h"

namespace mtadam {

// Storage types; the codes are those of mtadam_fused/tables/param_table.py.
enum StorageType : int64_t { kFloat64 = 0, kFloat32 = 1, kBFloat16 = 2, kFloat16 = 3, kStorageTypes = 4 };

struct Row {
  int64_t param;    // address
  int64_t exp_avg;  // address, of the arithmetic type
  int64_t numel;
  int64_t group;       // index into the groups
  int64_t param_type;  // StorageType
};
static_assert(sizeof(Row) == 5 * 8, "Python fills rows as five 64-bit integers");

struct Group {
  double lr, beta1, beta2, beta3, eps;
  double l2_decay;         // added to every term's gradient, the published form
  double decoupled_decay;  // applied once to the parameter, as AdamW does
  double grad_sign;        // -1 to maximize, else 1
  double first_nonzero;    // 1 where a running norm starts at its first non-zero value, else 0
  double norms;            // Norms
  double anchor;           // Anchor, or the position of a term
};
static_assert(sizeof(Group) == 11 * 8, "Python fills groups as eleven doubles");

// The scalars of a row in this group, at the step that `factors` are of.
template <class C>
MTADAM_FN RowScalars<C> row_scalars(const Group& g, const StepFactors<C>& factors) {
  return {C(g.grad_sign), C(g.beta1), C(1.0 - g.beta1), C(g.beta2), C(1.0 - g.beta2), C(g.l2_decay), factors};
}

// One step of all parameters of one device that share an arithmetic type C (double for float64, float for the rest).
template <class C>
struct StepArgs {
  int64_t rows, terms, moments;
  int64_t is_shared;              // whether all terms share one second moment
  const Row* row;                 // [rows]
  const Group* group;             // [groups]
  const double* weight;           // [groups, terms], the user's term weights
  const int64_t* grad;            // [terms, rows] addresses, 0 where absent
  const int64_t* grad_type;       // [rows] StorageType
  const int64_t* exp_avg_sq;      // [moments, rows] addresses, 0 where the pair was never reached
  const int64_t* max_exp_avg_sq;  // [moments, rows] addresses, 0 where there are none
  const int64_t* combined;        // [rows] addresses for the combined gradients, 0 where not wanted
  float* steps;                   // [rows] steps taken
  C* norm;                        // [rows, terms] norms of this step's gradients, NaN where absent
  C* norm_avg;                    // [rows, terms] running norms, NaN before the first
  C* scale;                       // [rows, terms] applied to the gradients
  double* gram;                   // [rows, terms, terms] dot products of the gradients, 0 where either is absent
  const float* grad_scale;        // what a GradScaler has multiplied the gradients by; null for 1
  const float* found_inf;         // where not 0, it has found one that is not finite: skip the step; may be null
};
template <class Args>
constexpr bool is_flat(int64_t members) {
  return std::is_trivially_copyable_v<Args> && sizeof(Args) == members * 8;
}
static_assert(is_flat<StepArgs<float>>(19) && is_flat<StepArgs<double>>(19), "Python fills 19 64-bit values");

// Returns what the gradients were multiplied by.
template <class C>
MTADAM_FN double scale_of_grads(const StepArgs<C>& args) {
  return args.grad_scale ? double(*args.grad_scale) : 1.0;
}

// Returns whether the step changes nothing.
template <class C>
MTADAM_FN bool is_skipped(const StepArgs<C>& args) {
  return args.found_inf && *args.found_inf != 0.0f;
}

// One step of PCGrad: weights from dot products.
struct PCGradArgs {
  int64_t terms;             // at most kMostRuleTerms
  int64_t seed;              // of the random orders
  int64_t mean;              // whether to divide by the number of gradients that are not zero
  const double* gram;        // [terms, terms]
  const double* preference;  // [terms], null for 1 each
  int64_t* step;             // counted when done
  double* weight;            // [terms]
};
static_assert(is_flat<PCGradArgs>(7), "Python fills 7 64-bit values");

// Eigenvalues and eigenvectors of a symmetric matrix.
struct EigenArgs {
  int64_t size;          // at most kMostRuleTerms
  const double* matrix;  // [size, size]
  double* value;         // [size]
  double* vector;        // [size, size], columns
  bool* is_null;         // [size] whether nothing but rounding is left of the eigenvalue
};
static_assert(is_flat<EigenArgs>(5), "Python fills 5 64-bit values");

// The point of least norm in the convex hull of vectors.
struct MinNormArgs {
  int64_t size;        // at most kMostVectors
  const double* gram;  // [size, size]
  double* weight;      // [size]
};
static_assert(is_flat<MinNormArgs>(3), "Python fills 3 64-bit values");

namespace cpu {

// With found_inf, all but term_norms and term_gram change nothing.

// Stage 1: fills `norm`.
template <class C>
void term_norms(const StepArgs<C>& args);

// Stage 2: from `norm` advances `norm_avg` and `steps` (where a term reaches the row), fills `scale`.
template <class C>
void balance(const StepArgs<C>& args);

// Stage 3: advances parameters and moments. With a shared moment it is combined_adam's update.
template <class C>
void mtadam_update(const StepArgs<C>& args);

// The three stages, a few rows at a time, so that stage 3 finds the gradients that stage 1 read in the cache.
template <class C>
void mtadam_step(const StepArgs<C>& args);

// Fills `gram`.
template <class C>
void term_gram(const StepArgs<C>& args);

// Adam's step on the sum of the gradients times `scale`: advances `steps`, parameters and moments.
template <class C>
void combined_adam(const StepArgs<C>& args);

// Fill `weight`.
void run_rule(const PCGradArgs& args);
void run_rule(const MinNormArgs& args);

// Fills `value`, `vector` and `is_null`.
void run_rule(const EigenArgs& args);

}  // namespace cpu
namespace cuda {

// The elements of a row that a block works on: [begin, end). Chunks are in the order of rows, and numbered from 0.
// Every row has one at least.
struct Chunk {
  int64_t row, begin, end, number;
};
static_assert(sizeof(Chunk) == 4 * 8, "Python fills chunks as four 64-bit integers");

// The step's arguments on a device, and what else the kernels need there. The tables of StepArgs are copies in device
// memory; only `grad`, `grad_type` and `combined` have none, because their values travel in the kernels' own argument.
template <class C>
struct DeviceArgs : StepArgs<C> {
  int64_t index;  // of the device
  void* stream;
  const int64_t* chunk_start;  // [rows + 1] the number of each row's first chunk
  const Chunk* chunk;          // [chunks]
  int64_t chunks;
  int64_t chunk_elements;   // of all chunks but the last of a row, which may be shorter; a multiple of 16
  double* partial;          // [sums, chunks] sums over the elements of a chunk; null if the norms are there already
  StepFactors<C>* factors;  // [rows]
  const int32_t* order;     // [2 * chunks] for kMtadamStep: the order in which blocks take work, see mtadam_step.cu
  unsigned* queue;          // [1 + rows] counters for kMtadamStep, zeros before a launch and after
  int64_t wants_combined;   // whether combined gradients are wanted
};
static_assert(is_flat<DeviceArgs<float>>(30) && is_flat<DeviceArgs<double>>(30), "Python fills 30 64-bit values");

// kBalance does kFoldNorms too where it is given `partial`. kMtadamUpdate is for a second moment per term,
// kCombinedAdam for one. kMtadamStep is the norms, the balance and either update in one kernel.
enum Stage : unsigned {
  kTermNorms = 1,
  kBalance = 2,
  kMtadamUpdate = 4,
  kTermGram = 8,
  kCombinedAdam = 16,
  kMtadamStep = 32,
  kFoldNorms = 64,  // from term_norms' sums over chunks to norms
  kBeginStep = 128  // counts the step, where kBalance does not
};

// Returns why the kernels cannot run on a device, empty if they can. Loads them there; leaves the device current.
std::string find_problem(int device);

// Returns how many rows one launch takes: their addresses fill a kernel's argument.
int64_t rows_at_once(int64_t terms, bool wants_combined);

// Launches the stages (bits of Stage) on the stream, anew for each rows_at_once rows: a kernel for each, but two for
// kTermGram. Waits for nothing. Leaves the device current.
//
// Args:
//   host: the step's arguments, with all tables in host memory.
//   device: the same with the tables on the device.
template <class C>
void run(const StepArgs<C>& host, const DeviceArgs<C>& device, unsigned stages);

// Launches one kernel, which does as that of the CPU; all addresses are of the device. Else as run.
template <class Args>
void run_rule(const Args& args, int device, void* stream);

}  // namespace cuda
}  // namespace mtadam
