#include <cmath>
#include <limits>

#include "present.h"
#include "sum_rows.h"

namespace mtadam::cpu {

template <class C>
void term_norms(const Step<C>& step, Rows rows) {
  const auto squares = [&](const Chunk& chunk, double* sums) {
    for_tiles(step, chunk, [&](const Present& present, int64_t n) {
      for (int64_t first = 0; first < present.count(); first += kTogether) {
        const int64_t count = std::min(kTogether, present.count() - first);
        C found[kTogether];
        blocks<C>().squares[present.type][count - 1](&present.grad[first], nullptr, n, found);
        for (int64_t i = 0; i < count; ++i) sums[present.term[first + i]] += found[i];
      }
    });
  };
  sum_rows(step, rows, step.terms, squares, [&](int64_t r, const double* sums) {
    for (int64_t k = 0; k < step.terms; ++k)
      step.norm[r * step.terms + k] =
          step.grad[k * step.rows + r] ? C(std::sqrt(sums[k])) : std::numeric_limits<C>::quiet_NaN();
  });
}

template void term_norms(const Step<double>&, Rows);
template void term_norms(const Step<float>&, Rows);

}  // namespace mtadam::cpu
