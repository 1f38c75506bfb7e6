#include "update_rows.h"

namespace mtadam::cpu {

template <class C>
void combined_adam(const Step<C>& step) {
  for (int64_t r = 0; r < step.rows; ++r)
    if (is_reached(step, r)) step.count[r] += 1;
  update_rows(step, blocks<C>().combined_adam, {0, step.rows});
}

template void combined_adam(const Step<double>&);
template void combined_adam(const Step<float>&);

}  // namespace mtadam::cpu
