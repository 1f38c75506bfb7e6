#include "update_rows.h"

namespace mtadam::cpu {

template <class C>
void combined_adam(const StepArgs<C>& args) {
  if (is_skipped(args)) return;
  for (int64_t r = 0; r < args.rows; ++r)
    if (has_any_grad(args, r)) args.steps[r] += 1;
  update_rows(args, blocks<C>().combined_adam, {0, args.rows});
}

template void combined_adam(const StepArgs<double>&);
template void combined_adam(const StepArgs<float>&);

}  // namespace mtadam::cpu
