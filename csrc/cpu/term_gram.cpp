#include "present.h"
#include "sum_rows.h"

namespace mtadam::cpu {
namespace {

// Adds the products of some gradients, from `first` on, with each other and with those before them, to the lower
// triangle of `gram`, [terms, terms].
template <class C>
void add_products(const Present& present, int64_t first, int64_t begin, int64_t end, int64_t terms, double* gram) {
  const int64_t last = std::min(first + kGradsPerPass, present.count());
  const void* const* const grad = present.grad.data();
  const auto at = [&](int64_t k, int64_t j) -> double& { return gram[present.term[k] * terms + present.term[j]]; };
  double sums[kGradsPerPass * kGradsPerPass];
  blocks<C>().pairs[present.type][last - first - 1](grad + first, nullptr, begin, end, sums);
  for (int64_t k = first, pair = 0; k < last; ++k)
    for (int64_t j = first; j <= k; ++j, ++pair) at(k, j) += sums[pair];
  for (int64_t before = 0; before < first; before += kGradsPerPass) {
    blocks<C>().with_others[present.type][last - first - 1](grad + first, grad + before, begin, end, sums);
    for (int64_t k = first, pair = 0; k < last; ++k)
      for (int64_t j = before; j < before + kGradsPerPass; ++j, ++pair) at(k, j) += sums[pair];
  }
}

}  // namespace

template <class C>
void term_gram(const StepArgs<C>& args) {
  const int64_t terms = args.terms;
  const auto of_chunk = [&](const Chunk& chunk, double* gram) {
    const Present& present = present_in(args, chunk.row);
    for (int64_t begin = chunk.begin; begin < chunk.end; begin += kElementsPerTile)
      for (int64_t first = 0; first < present.count(); first += kGradsPerPass)
        add_products<C>(present, first, begin, std::min(begin + kElementsPerTile, chunk.end), terms, gram);
  };
  sum_rows(args, {0, args.rows}, terms * terms, of_chunk, [&](int64_t r, const double* gram) {
    double* const to = args.gram + r * terms * terms;
    const double squared_scale = scale_of_grads(args) * scale_of_grads(args);
    for (int64_t k = 0; k < terms; ++k)
      for (int64_t j = 0; j <= k; ++j) to[k * terms + j] = to[j * terms + k] = gram[k * terms + j] / squared_scale;
  });
}

template void term_gram(const StepArgs<double>&);
template void term_gram(const StepArgs<float>&);

}  // namespace mtadam::cpu
