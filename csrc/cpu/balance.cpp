#include "../update_math.h"
#include "stages.h"

namespace mtadam::cpu {

template <class C>
void balance(const Step<C>& step, Rows rows) {
  for (int64_t r = rows.first; r < rows.last; ++r) {
    const Group& group = step.group[step.row[r].group];
    const double* weight = step.weight + step.row[r].group * step.terms;
    C* running = step.running + r * step.terms;
    C* scale = step.scale + r * step.terms;
    balance_row(step.terms, step.norm + r * step.terms, weight, C(group.beta3), group.first_nonzero != 0, running,
                scale);
    if (is_reached(step, r)) step.count[r] += 1;
  }
}

template void balance(const Step<double>&, Rows);
template void balance(const Step<float>&, Rows);

}  // namespace mtadam::cpu
