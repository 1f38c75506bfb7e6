// The gradients that reach a row.
#pragma once

#include <vector>

#include "blocks.h"
#include "stages.h"

namespace mtadam::cpu {

// The terms with a gradient, and its address.
struct Present {
  int64_t type;
  std::vector<int64_t> term;
  std::vector<const void*> grad;

  int64_t count() const { return int64_t(term.size()); }
};

// Returns those of a row, valid until the thread asks for another row's.
template <class C>
const Present& present_in(const StepArgs<C>& args, int64_t r) {
  static thread_local Present present;  // a step allocates nothing
  present.type = args.grad_type[r];
  present.term.clear();
  present.grad.clear();
  for (int64_t k = 0; k < args.terms; ++k)
    if (const int64_t grad = args.grad[k * args.rows + r]) {
      present.term.push_back(k);
      present.grad.push_back(reinterpret_cast<const void*>(grad));
    }
  return present;
}

}  // namespace mtadam::cpu
