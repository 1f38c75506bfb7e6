// What Python hands to the native kernels, and the launchers that take it.
//
// Addresses and sizes arrive as tables of 64-bit integers, so the module needs nothing of torch. A *row* is one
// parameter; a *pair* is one (term, row). Tables over pairs are term-major, [terms, rows]; scalars over pairs are
// row-major, [rows, terms]. MTAdam has a second moment per term, CombinedAdam one for all: *moments* is that number.
#pragma once

#include <cstdint>

#include "update_math.h"

namespace mtadam {

// Storage types; the codes are those of mtadam_fused/table.py.
enum StorageType : int64_t { kFloat64 = 0, kFloat32 = 1, kBFloat16 = 2, kFloat16 = 3, kStorageTypes = 4 };

struct Row {
  int64_t param;    // address
  int64_t exp_avg;  // address, of the arithmetic type
  int64_t numel;
  int64_t group;       // index into the groups
  int64_t param_type;  // StorageType
};
static_assert(sizeof(Row) == 5 * sizeof(int64_t), "rows arrive as a table of five 64-bit integers");

struct Group {
  double lr, beta1, beta2, beta3, eps;
  double l2_decay;         // added to every term's gradient, the published form
  double decoupled_decay;  // applied once to the parameter, as AdamW does
  double direction;        // -1 where the group maximizes, else 1
  double first_nonzero;    // 1 where a running norm starts at its first non-zero value, else 0
};
static_assert(sizeof(Group) == 9 * sizeof(double), "groups arrive as a table of nine doubles");

// One step of all parameters of one device that share an arithmetic type C (double for float64, float for the rest).
template <class C>
struct Step {
  int64_t rows, terms, moments;
  const Row* row;            // [rows]
  const Group* group;        // [groups]
  const double* weight;      // [groups, terms], the user's term weights
  const int64_t* grad;       // [terms, rows] addresses, 0 where absent
  const int64_t* grad_type;  // [rows] StorageType
  const int64_t* second;     // [moments, rows] addresses of the second moments, 0 where the pair was never reached
  const int64_t* maximum;    // [moments, rows] addresses of their maxima, 0 where there are none
  const int64_t* combined;   // [rows] addresses for the combined gradients, 0 where not wanted
  float* count;              // [rows] steps taken
  C* norm;                   // [rows, terms] norms of this step's gradients, NaN where absent
  C* running;                // [rows, terms] running norms, NaN before the first
  C* scale;                  // [rows, terms] what the gradients are multiplied by
  double* gram;              // [rows, terms, terms] dot products of the gradients, 0 where either is absent; or null
};

namespace cpu {

// Stage 1: fills `norm`.
template <class C>
void term_norms(const Step<C>& step);

// Stage 2: from `norm` advances `running` and `count` (where a term reaches the row), fills `scale`.
template <class C>
void balance(const Step<C>& step);

// Stage 3: advances parameters and moments.
template <class C>
void mtadam_update(const Step<C>& step);

// The three stages, a few rows at a time, so that stage 3 finds the gradients that stage 1 read in the cache.
template <class C>
void mtadam_step(const Step<C>& step);

// Fills `gram`.
template <class C>
void term_gram(const Step<C>& step);

// Adam's step on the sum of the gradients times `scale`: advances `count`, parameters and moments.
template <class C>
void combined_adam(const Step<C>& step);

}  // namespace cpu
namespace cuda {

// The part of a row that a block works on: elements [begin, end). Chunks are in the order of rows, and numbered from 0;
// every row has one at least.
struct Chunk {
  int64_t row, begin, end, number;
};
static_assert(sizeof(Chunk) == 4 * sizeof(int64_t), "chunks arrive as a table of four 64-bit integers");

// What a step on a device needs besides: copies of the tables there, and scratch. Pointers are to device memory; those
// of Step to tables are to host memory, its others (count, norm, running, scale) to device memory.
template <class C>
struct Device {
  int index;
  void* stream;
  const Row* row;
  const Group* group;
  const double* weight;
  const int64_t* second;
  const int64_t* maximum;
  const int64_t* chunk_start;  // [rows + 1] the number of each row's first chunk
  const Chunk* chunk;          // [chunks]
  int64_t chunks;
  int64_t chunk_elements;   // of all chunks but the last of a row, which may be shorter; a multiple of 16
  C* partial;               // [terms, chunks] for term_norms, [terms * (terms + 1) / 2, chunks] for term_gram
  StepFactors<C>* factors;  // [rows]
  // For kMtadamStep: [2 * chunks] the work of each launch in the order in which blocks take it, the number of a chunk
  // for its norms and the bitwise complement for its update; and [1 + rows] counters, zeros before it and after.
  const int32_t* order;
  unsigned* queue;
  bool wants_combined;
};

// kBalance does kFoldNorms too where it is given `partial`; kMtadamStep is the first three in one kernel.
enum Stage : unsigned {
  kTermNorms = 1,
  kBalance = 2,
  kMtadamUpdate = 4,
  kTermGram = 8,
  kCombinedAdam = 16,
  kMtadamStep = 32,
  kFoldNorms = 64  // from term_norms' sums over chunks to norms
};

// Rows of a launch: of as many addresses as a kernel's argument takes.
int64_t rows_at_once(int64_t terms, bool wants_combined);

// Launches the stages asked for (bits of Stage) on the stream, anew for each rows_at_once rows: a kernel for each of
// MTAdam's stages and for kFoldNorms alone, two for term_gram (three for more terms than one reads together) and two
// for combined_adam. Waits for nothing. Leaves the device current.
template <class C>
void run(const Step<C>& step, const Device<C>& device, unsigned stages);

}  // namespace cuda
}  // namespace mtadam
