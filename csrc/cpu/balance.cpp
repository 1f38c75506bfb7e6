#include "../update_math.h"
#include "stages.h"

namespace mtadam::cpu {

template <class C>
void balance(const StepArgs<C>& args, Rows rows) {
  if (is_skipped(args)) return;
  for (int64_t r = rows.first; r < rows.last; ++r) {
    const Group& group = args.group[args.row[r].group];
    const double* weight = args.weight + args.row[r].group * args.terms;
    const C* norm = args.norm + r * args.terms;
    C* norm_avg = args.norm_avg + r * args.terms;
    C* scale = args.scale + r * args.terms;
    const C decay = norm_decay<C>(group.beta3, double(args.steps[r]) + 1, int64_t(group.norms));
    for (int64_t k = 0; k < args.terms; ++k)
      norm_avg[k] = running_norm(norm_avg[k], norm[k], decay, group.first_nonzero != 0, group.norms >= kPeak);
    const C anchor = anchor_of(args.terms, norm_avg, int64_t(group.anchor));
    for (int64_t k = 0; k < args.terms; ++k) scale[k] = term_scale(norm_avg[k], anchor, C(weight[k]));
    if (has_any_grad(args, r)) args.steps[r] += 1;
  }
}

template void balance(const StepArgs<double>&, Rows);
template void balance(const StepArgs<float>&, Rows);

}  // namespace mtadam::cpu
