#include "update_rows.h"

namespace mtadam::cpu {

template <class C>
void mtadam_update(const StepArgs<C>& args, Rows rows) {
  if (is_skipped(args)) return;
  update_rows(args, args.is_shared ? blocks<C>().combined_adam : blocks<C>().mtadam_update, rows);
}

template void mtadam_update(const StepArgs<double>&, Rows);
template void mtadam_update(const StepArgs<float>&, Rows);

}  // namespace mtadam::cpu
