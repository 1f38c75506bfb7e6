// Runs an update of blocks.h over rows.
#pragma once

#include <vector>

#include "blocks.h"
#include "parallel.h"
#include "stages.h"

namespace mtadam::cpu {

template <class C>
RowStep<C> row_step(const Step<C>& step, int64_t r) {
  const Group& g = step.group[step.row[r].group];
  return {step.terms,
          step.scale + r * step.terms,
          C(g.direction),
          C(g.beta1),
          C(1.0 - g.beta1),
          C(g.beta2),
          C(1.0 - g.beta2),
          C(g.l2_decay),
          step_factors<C>(g.lr, g.beta1, g.beta2, g.eps, g.decoupled_decay, double(step.count[r]))};
}

// A thread's room for the addresses of one block.
template <class C>
struct Addresses {
  explicit Addresses(const Step<C>& step) : grad(step.terms), second(step.moments), maximum(step.moments) {}

  std::vector<const void*> grad;
  std::vector<C*> second, maximum;
};

// Blocks of one chunk, last first: the gradients read last by stage 1 are the ones still in the cache.
template <class C>
void update_chunk(const Step<C>& step, const Updates<C>& updates, const Chunk& chunk, const RowStep<C>& values,
                  Addresses<C>& of) {
  const Row& row = step.row[chunk.row];
  const int64_t grad_type = step.grad_type[chunk.row];
  const auto update = updates[row.param_type][grad_type];
  const auto at = [](int64_t base, int64_t i) { return base ? reinterpret_cast<C*>(base) + i : nullptr; };
  const int64_t combined = step.combined[chunk.row];
  const int64_t count = (chunk.end - chunk.begin + kBlock - 1) / kBlock;
  for (int64_t b = count - 1; b >= 0; --b) {
    const int64_t i = chunk.begin + b * kBlock;
    for (int64_t k = 0; k < step.terms; ++k) {
      const int64_t grad = step.grad[k * step.rows + chunk.row];
      of.grad[k] = grad ? address(grad, grad_type, i) : nullptr;
    }
    for (int64_t k = 0; k < step.moments; ++k) {
      of.second[k] = at(step.second[k * step.rows + chunk.row], i);
      of.maximum[k] = at(step.maximum[k * step.rows + chunk.row], i);
    }
    const BlockPointers<C> pointers{const_cast<char*>(address(row.param, row.param_type, i)),
                                    at(row.exp_avg, i),
                                    combined ? const_cast<char*>(address(combined, row.param_type, i)) : nullptr,
                                    of.grad.data(),
                                    of.second.data(),
                                    of.maximum.data()};
    update(pointers, std::min(kBlock, chunk.end - i), values);
  }
}

template <class C>
void update_rows(const Step<C>& step, const Updates<C>& updates, Rows rows) {
  const Chunks chunks(step, rows);
  parallel_for(chunks.size(), chunks.grain(), [&](int64_t begin, int64_t end) {
    Addresses<C> addresses(step);
    int64_t row = -1;
    RowStep<C> values{};
    for (int64_t c = end - 1; c >= begin; --c) {
      const Chunk chunk = chunks[c];
      if (!is_reached(step, chunk.row)) continue;
      if (chunk.row != row) values = row_step(step, row = chunk.row);
      update_chunk(step, updates, chunk, values, addresses);
    }
  });
}

}  // namespace mtadam::cpu
