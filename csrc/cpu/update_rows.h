// Runs an update of blocks.h over rows.
#pragma once

#include <vector>

#include "blocks.h"
#include "parallel.h"
#include "stages.h"

namespace mtadam::cpu {

template <class C>
RowScalars<C> row_scalars(const StepArgs<C>& args, int64_t r) {
  const Group& g = args.group[args.row[r].group];
  return mtadam::row_scalars(g,
                             step_factors<C>(g.lr, g.beta1, g.beta2, g.eps, g.decoupled_decay, double(args.steps[r])));
}

// A thread's addresses of one block.
template <class C>
struct Addresses {
  explicit Addresses(const StepArgs<C>& args)
      : grad(args.terms), exp_avg_sq(args.moments), max_exp_avg_sq(args.moments) {}

  std::vector<const void*> grad;
  std::vector<C*> exp_avg_sq, max_exp_avg_sq;
};

// Blocks of one chunk, last first: the gradients read last by stage 1 are the ones still in the cache.
template <class C>
void update_chunk(const StepArgs<C>& args, const Updates<C>& updates, const Chunk& chunk, const RowScalars<C>& scalars,
                  Addresses<C>& of) {
  const Row& row = args.row[chunk.row];
  const int64_t grad_type = args.grad_type[chunk.row];
  const auto update = updates[row.param_type][grad_type];
  const auto at = [](int64_t base, int64_t i) { return base ? reinterpret_cast<C*>(base) + i : nullptr; };
  const int64_t combined = args.combined[chunk.row];
  const int64_t count = (chunk.end - chunk.begin + kBlock - 1) / kBlock;
  for (int64_t b = count - 1; b >= 0; --b) {
    const int64_t i = chunk.begin + b * kBlock;
    for (int64_t k = 0; k < args.terms; ++k) {
      const int64_t grad = args.grad[k * args.rows + chunk.row];
      of.grad[k] = grad ? address(grad, grad_type, i) : nullptr;
    }
    for (int64_t k = 0; k < args.moments; ++k) {
      of.exp_avg_sq[k] = at(args.exp_avg_sq[k * args.rows + chunk.row], i);
      of.max_exp_avg_sq[k] = at(args.max_exp_avg_sq[k * args.rows + chunk.row], i);
    }
    const BlockArgs<C> block{args.terms,
                             args.scale + chunk.row * args.terms,
                             const_cast<char*>(address(row.param, row.param_type, i)),
                             at(row.exp_avg, i),
                             combined ? const_cast<char*>(address(combined, row.param_type, i)) : nullptr,
                             of.grad.data(),
                             of.exp_avg_sq.data(),
                             of.max_exp_avg_sq.data()};
    update(block, std::min(kBlock, chunk.end - i), scalars);
  }
}

template <class C>
void update_rows(const StepArgs<C>& args, const Updates<C>& updates, Rows rows) {
  const Chunks chunks(args, rows);
  parallel_for(chunks.size(), chunks.grain(), [&](int64_t begin, int64_t end) {
    Addresses<C> addresses(args);
    int64_t row = -1;
    RowScalars<C> scalars{};
    for (int64_t c = end - 1; c >= begin; --c) {
      const Chunk chunk = chunks[c];
      if (!has_any_grad(args, chunk.row)) continue;
      if (chunk.row != row) scalars = row_scalars(args, row = chunk.row);
      update_chunk(args, updates, chunk, scalars, addresses);
    }
  });
}

}  // namespace mtadam::cpu
