#include <vector>

#include "blocks.h"
#include "parallel.h"
#include "stages.h"

namespace mtadam::cpu {
namespace {

// The scalars of one row, and its scales with the group's direction.
template <class C>
RowStep<C> row_step(const Step<C>& step, int64_t r, C* scale) {
  const Group& g = step.group[step.row[r].group];
  for (int64_t k = 0; k < step.terms; ++k) scale[k] = C(g.direction) * step.scale[r * step.terms + k];
  return {step.terms,    scale,
          C(g.beta1),    C(1.0 - g.beta1),
          C(g.beta2),    C(1.0 - g.beta2),
          C(g.l2_decay), step_factors<C>(g.lr, g.beta1, g.beta2, g.eps, g.decoupled_decay, double(step.count[r]))};
}

// Blocks of one chunk, last first: the gradients read last by term_norms are the ones still in the cache.
template <class C>
void update_chunk(const Step<C>& step, const Chunk& chunk, const RowStep<C>& values, const void** grad, C** second,
                  C** maximum) {
  const Row& row = step.row[chunk.row];
  const int64_t grad_type = step.grad_type[chunk.row];
  const auto update = blocks<C>().update[row.param_type][grad_type];
  const auto at = [](int64_t base, int64_t i) { return base ? reinterpret_cast<C*>(base) + i : nullptr; };
  const int64_t combined = step.combined[chunk.row];
  const int64_t count = (chunk.end - chunk.begin + kBlock - 1) / kBlock;
  for (int64_t b = count - 1; b >= 0; --b) {
    const int64_t i = chunk.begin + b * kBlock;
    for (int64_t k = 0; k < step.terms; ++k) {
      const int64_t pair = k * step.rows + chunk.row;
      grad[k] = step.grad[pair] ? address(step.grad[pair], grad_type, i) : nullptr;
      second[k] = at(step.second[pair], i);
      maximum[k] = at(step.maximum[pair], i);
    }
    const BlockPointers<C> pointers{const_cast<char*>(address(row.param, row.param_type, i)),
                                    at(row.exp_avg, i),
                                    combined ? const_cast<char*>(address(combined, row.param_type, i)) : nullptr,
                                    grad,
                                    second,
                                    maximum};
    update(pointers, std::min(kBlock, chunk.end - i), values);
  }
}

}  // namespace

template <class C>
void mtadam_update(const Step<C>& step, Rows rows) {
  const Chunks chunks(step, rows);
  parallel_for(chunks.size(), chunks.grain(), [&](int64_t begin, int64_t end) {
    std::vector<C> scale(step.terms);
    std::vector<const void*> grad(step.terms);
    std::vector<C*> second(step.terms), maximum(step.terms);
    int64_t row = -1;
    RowStep<C> values{};
    for (int64_t c = end - 1; c >= begin; --c) {
      const Chunk chunk = chunks[c];
      if (!is_reached(step, chunk.row)) continue;
      if (chunk.row != row) values = row_step(step, row = chunk.row, scale.data());
      update_chunk(step, chunk, values, grad.data(), second.data(), maximum.data());
    }
  });
}

template void mtadam_update(const Step<double>&, Rows);
template void mtadam_update(const Step<float>&, Rows);

}  // namespace mtadam::cpu
