#include <cmath>
#include <limits>

#include "blocks.h"
#include "sum_rows.h"

namespace mtadam::cpu {

template <class C>
void term_norms(const Step<C>& step, Rows rows) {
  const auto squares = [&](const Chunk& chunk, double* sums) {
    const int64_t type = step.grad_type[chunk.row];
    for (int64_t k = 0; k < step.terms; ++k)
      if (const int64_t grad = step.grad[k * step.rows + chunk.row])
        sums[k] = blocks<C>().sum_of_squares[type](address(grad, type, chunk.begin), chunk.end - chunk.begin);
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
