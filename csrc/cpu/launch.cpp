#include "../launch.h"

#include "parallel.h"
#include "stages.h"

namespace mtadam::cpu {
namespace {

// Bytes of gradients that a thread reads before it reads them again: half of a usual second-level cache.
constexpr int64_t kCachedBytes = 1 << 20;

template <class C>
int64_t grad_bytes(const StepArgs<C>& args, int64_t row) {
  return args.terms * args.row[row].numel * kStorageBytes[args.grad_type[row]];
}

}  // namespace

template <class C>
void term_norms(const StepArgs<C>& args) {
  term_norms(args, {0, args.rows});
}

template <class C>
void balance(const StepArgs<C>& args) {
  balance(args, {0, args.rows});
}

template <class C>
void mtadam_update(const StepArgs<C>& args) {
  mtadam_update(args, {0, args.rows});
}

template <class C>
void mtadam_step(const StepArgs<C>& args) {
  const int64_t cached = kCachedBytes * threads();
  for (int64_t first = 0; first < args.rows;) {
    int64_t last = first + 1;
    for (int64_t bytes = grad_bytes(args, first); last < args.rows; ++last)
      if ((bytes += grad_bytes(args, last)) > cached) break;
    const Rows rows{first, last};
    term_norms(args, rows);
    balance(args, rows);
    mtadam_update(args, rows);
    first = last;
  }
}

#define MTADAM_INSTANTIATE(C)                      \
  template void term_norms(const StepArgs<C>&);    \
  template void balance(const StepArgs<C>&);       \
  template void mtadam_update(const StepArgs<C>&); \
  template void mtadam_step(const StepArgs<C>&);
MTADAM_INSTANTIATE(double)
MTADAM_INSTANTIATE(float)

}  // namespace mtadam::cpu
