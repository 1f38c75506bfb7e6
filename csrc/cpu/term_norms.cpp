#include <cmath>
#include <limits>
#include <vector>

#include "blocks.h"
#include "parallel.h"
#include "stages.h"

namespace mtadam::cpu {
template <class C>
void term_norms(const Step<C>& step, Rows rows) {
  const Chunks chunks(step, rows);
  static thread_local std::vector<double> partial;  // [chunks, terms], of the calling thread
  if (int64_t(partial.size()) < chunks.size() * step.terms) partial.resize(chunks.size() * step.terms);
  double* const sums = partial.data();
  parallel_for(chunks.size(), chunks.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const Chunk chunk = chunks[c];
      for (int64_t k = 0; k < step.terms; ++k)
        if (const int64_t grad = step.grad[k * step.rows + chunk.row]) {
          const int64_t type = step.grad_type[chunk.row];
          sums[c * step.terms + k] =
              blocks<C>().sum_of_squares[type](address(grad, type, chunk.begin), chunk.end - chunk.begin);
        }
    }
  });
  for (int64_t r = rows.first; r < rows.last; ++r) {
    for (int64_t k = 0; k < step.terms; ++k) {
      C& norm = step.norm[r * step.terms + k];
      norm = std::numeric_limits<C>::quiet_NaN();
      if (!step.grad[k * step.rows + r]) continue;
      double sum = 0;  // in the order of the chunks, whichever thread did them
      for (int64_t c = chunks.first_of(r); c < chunks.first_of(r + 1); ++c) sum += sums[c * step.terms + k];
      norm = C(std::sqrt(sum));
    }
  }
}

template void term_norms(const Step<double>&, Rows);
template void term_norms(const Step<float>&, Rows);

}  // namespace mtadam::cpu
