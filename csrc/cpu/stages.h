// The three stages over a range of rows. The launchers of launch.h run them over all rows, or some rows at a time.
#pragma once

#include "chunks.h"

namespace mtadam::cpu {

template <class C>
void term_norms(const StepArgs<C>& args, Rows rows);

template <class C>
void balance(const StepArgs<C>& args, Rows rows);

template <class C>
void mtadam_update(const StepArgs<C>& args, Rows rows);

// Returns whether any term reaches a row.
template <class C>
bool has_any_grad(const StepArgs<C>& args, int64_t r) {
  for (int64_t k = 0; k < args.terms; ++k)
    if (args.grad[k * args.rows + r]) return true;
  return false;
}

// Bytes of one element of a storage type.
constexpr int64_t kStorageBytes[kStorageTypes] = {8, 4, 2, 2};

}  // namespace mtadam::cpu
