#include "../update_math.h"
#include "stages.h"

namespace mtadam::cpu {

template <class C>
void balance(const StepArgs<C>& args, Rows rows) {
  for (int64_t r = rows.first; r < rows.last; ++r) {
    const Group& group = args.group[args.row[r].group];
    const double* weight = args.weight + args.row[r].group * args.terms;
    const C* norm = args.norm + r * args.terms;
    C* norm_avg = args.norm_avg + r * args.terms;
    C* scale = args.scale + r * args.terms;
    for (int64_t k = 0; k < args.terms; ++k)
      norm_avg[k] = running_norm(norm_avg[k], norm[k], C(group.beta3), group.first_nonzero != 0);
    const C anchor = anchor_of(args.terms, norm_avg);
    for (int64_t k = 0; k < args.terms; ++k) scale[k] = term_scale(norm_avg[k], anchor, C(weight[k]));
    if (has_any_grad(args, r)) args.steps[r] += 1;
  }
}

template void balance(const StepArgs<double>&, Rows);
template void balance(const StepArgs<float>&, Rows);

}  // namespace mtadam::cpu
