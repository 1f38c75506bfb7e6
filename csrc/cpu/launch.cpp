#include "../launch.h"

#include "parallel.h"
#include "stages.h"

namespace mtadam::cpu {
namespace {

// Gradients that a thread reads before it reads them again: half of a usual second-level cache.
constexpr int64_t kCachedBytes = 1 << 20;

template <class C>
int64_t grad_bytes(const Step<C>& step, int64_t row) {
  return step.terms * step.row[row].numel * kStorageBytes[step.grad_type[row]];
}

}  // namespace

template <class C>
void term_norms(const Step<C>& step) {
  term_norms(step, {0, step.rows});
}

template <class C>
void balance(const Step<C>& step) {
  balance(step, {0, step.rows});
}

template <class C>
void mtadam_update(const Step<C>& step) {
  mtadam_update(step, {0, step.rows});
}

template <class C>
void mtadam_step(const Step<C>& step) {
  const int64_t cached = kCachedBytes * threads();
  for (int64_t first = 0; first < step.rows;) {
    int64_t last = first + 1;
    for (int64_t bytes = grad_bytes(step, first); last < step.rows; ++last)
      if ((bytes += grad_bytes(step, last)) > cached) break;
    const Rows rows{first, last};
    term_norms(step, rows);
    balance(step, rows);
    mtadam_update(step, rows);
    first = last;
  }
}

#define MTADAM_INSTANTIATE(C)                  \
  template void term_norms(const Step<C>&);    \
  template void balance(const Step<C>&);       \
  template void mtadam_update(const Step<C>&); \
  template void mtadam_step(const Step<C>&);
MTADAM_INSTANTIATE(double)
MTADAM_INSTANTIATE(float)

}  // namespace mtadam::cpu
