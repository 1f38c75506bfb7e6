#include "../update_math.h"
#include "stages.h"

namespace mtadam::cpu {

template <class C>
void balance(const Step<C>& step, Rows rows) {
  for (int64_t r = rows.first; r < rows.last; ++r) {
    const Group& group = step.group[step.row[r].group];
    const double* weight = step.weight + step.row[r].group * step.terms;
    const C* norm = step.norm + r * step.terms;
    C* running = step.running + r * step.terms;
    C* scale = step.scale + r * step.terms;
    for (int64_t k = 0; k < step.terms; ++k)
      running[k] = running_norm(running[k], norm[k], C(group.beta3), group.first_nonzero != 0);
    const C anchor = anchor_of(step.terms, running);
    for (int64_t k = 0; k < step.terms; ++k) scale[k] = term_scale(running[k], anchor, C(weight[k]));
    if (is_reached(step, r)) step.count[r] += 1;
  }
}

template void balance(const Step<double>&, Rows);
template void balance(const Step<float>&, Rows);

}  // namespace mtadam::cpu
