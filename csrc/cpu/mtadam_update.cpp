#include "update_rows.h"

namespace mtadam::cpu {

template <class C>
void mtadam_update(const Step<C>& step, Rows rows) {
  update_rows(step, blocks<C>().mtadam_update, rows);
}

template void mtadam_update(const Step<double>&, Rows);
template void mtadam_update(const Step<float>&, Rows);

}  // namespace mtadam::cpu
