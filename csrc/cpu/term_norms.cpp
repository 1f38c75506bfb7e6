#include <cmath>
#include <limits>

#include "present.h"
#include "sum_rows.h"

namespace mtadam::cpu {

template <class C>
void term_norms(const StepArgs<C>& args, Rows rows) {
  const auto squares = [&](const Chunk& chunk, double* sums) {
    const Present& present = present_in(args, chunk.row);
    for (int64_t first = 0; first < present.count(); first += kGradsPerPass) {
      const int64_t count = std::min(kGradsPerPass, present.count() - first);
      double found[kGradsPerPass];
      blocks<C>().squares[present.type][count - 1](&present.grad[first], nullptr, chunk.begin, chunk.end, found);
      for (int64_t i = 0; i < count; ++i) sums[present.term[first + i]] = found[i];
    }
  };
  sum_rows(args, rows, args.terms, squares, [&](int64_t r, const double* sums) {
    for (int64_t k = 0; k < args.terms; ++k)
      args.norm[r * args.terms + k] = args.grad[k * args.rows + r] ? C(std::sqrt(sums[k]) / scale_of_grads(args))
                                                                   : std::numeric_limits<C>::quiet_NaN();
  });
}

template void term_norms(const StepArgs<double>&, Rows);
template void term_norms(const StepArgs<float>&, Rows);

}  // namespace mtadam::cpu
