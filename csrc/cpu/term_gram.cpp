#include "blocks.h"
#include "sum_rows.h"

namespace mtadam::cpu {
namespace {

// Elements of all terms that are multiplied with each other before the next are read: 4 KB a term, so that those of
// ten terms stay in a first-level cache.
constexpr int64_t kTile = 1024;

// Adds the products of the gradients over `n` elements to the lower triangle of `gram`, [terms, terms].
template <class C>
void add_products(const Step<C>& step, int64_t row, int64_t begin, int64_t n, double* gram) {
  const int64_t type = step.grad_type[row];
  const auto at = [&](int64_t k) { return step.grad[k * step.rows + row]; };
  for (int64_t k = 0; k < step.terms; ++k) {
    if (!at(k)) continue;
    const void* const grad = address(at(k), type, begin);
    gram[k * step.terms + k] += blocks<C>().sum_of_squares[type](grad, n);
    for (int64_t j = 0; j < k; ++j)
      if (at(j)) gram[k * step.terms + j] += blocks<C>().sum_of_products[type](grad, address(at(j), type, begin), n);
  }
}

}  // namespace

template <class C>
void term_gram(const Step<C>& step) {
  const int64_t terms = step.terms;
  const auto of_chunk = [&](const Chunk& chunk, double* gram) {
    for (int64_t i = chunk.begin; i < chunk.end; i += kTile)
      add_products(step, chunk.row, i, std::min(kTile, chunk.end - i), gram);
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
