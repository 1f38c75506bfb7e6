#include "present.h"
#include "sum_rows.h"

namespace mtadam::cpu {
namespace {

// Adds the products of some gradients, from `first` on, with each other and with those before them, to the lower
// triangle of `gram`, [terms, terms].
template <class C>
void add_products(const Present& present, int64_t first, int64_t n, int64_t terms, double* gram) {
  const int64_t last = std::min(first + kTogether, present.count());
  const void* const* const grad = present.grad.data();
  const auto at = [&](int64_t k, int64_t j) -> double& { return gram[present.term[k] * terms + present.term[j]]; };
  C sums[kTogether * (kTogether + 1) / 2];
  blocks<C>().pairs[present.type][last - first - 1](grad + first, nullptr, n, sums);
  for (int64_t k = first, pair = 0; k < last; ++k)
    for (int64_t j = first; j <= k; ++j, ++pair) at(k, j) += sums[pair];
  for (int64_t k = first; k < last; ++k)
    for (int64_t before = 0; before < first; before += kTogether) {
      blocks<C>().with_one[present.type][kTogether - 1](grad + before, grad[k], n, sums);
      for (int64_t j = 0; j < kTogether; ++j) at(k, before + j) += sums[j];
    }
}

}  // namespace

template <class C>
void term_gram(const Step<C>& step) {
  const int64_t terms = step.terms;
  const auto of_chunk = [&](const Chunk& chunk, double* gram) {
    for_tiles(step, chunk, [&](const Present& present, int64_t n) {
      for (int64_t first = 0; first < present.count(); first += kTogether)
        add_products<C>(present, first, n, terms, gram);
    });
  };
  sum_rows(step, {0, step.rows}, terms * terms, of_chunk, [&](int64_t r, const double* gram) {
    double* const to = step.gram + r * terms * terms;
    for (int64_t k = 0; k < terms; ++k)
      for (int64_t j = 0; j <= k; ++j) to[k * terms + j] = to[j * terms + k] = gram[k * terms + j];
  });
}

template void term_gram(const Step<double>&);
template void term_gram(const Step<float>&);

}  // namespace mtadam::cpu
