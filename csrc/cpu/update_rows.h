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
  return mtadam::row_scalars(g, step_factors<C>(g.lr, g.beta1, g.beta2, g.eps, g.decoupled_decay, double(args.steps[r]),
                                                scale_of_grads(args)));
}

// The row that a thread updates.
template <class C>
class ThreadRow {
 public:
  explicit ThreadRow(const StepArgs<C>& args)
      : args_(args), scale_(args.terms), grad_(args.terms), exp_avg_sq_(args.moments), max_exp_avg_sq_(args.moments) {}

  void take(int64_t r) {
    const Row& row = args_.row[r];
    scalars_ = row_scalars(args_, r);
    const auto pointer = [](int64_t address) { return reinterpret_cast<C*>(address); };
    for (int64_t k = 0; k < args_.terms; ++k) {
      scale_[k] = args_.scale[r * args_.terms + k] * scalars_.factors.unscale;
      grad_[k] = pointer(args_.grad[k * args_.rows + r]);
    }
    for (int64_t k = 0; k < args_.moments; ++k) {
      exp_avg_sq_[k] = pointer(args_.exp_avg_sq[k * args_.rows + r]);
      max_exp_avg_sq_[k] = pointer(args_.max_exp_avg_sq[k * args_.rows + r]);
    }
    at_ = {args_.terms,  scale_.data(),      pointer(row.param),    pointer(row.exp_avg), pointer(args_.combined[r]),
           grad_.data(), exp_avg_sq_.data(), max_exp_avg_sq_.data()};
    number_ = r;
  }

  void update(const Updates<C>& updates, const Chunk& chunk) {
    if (chunk.row != number_) take(chunk.row);
    updates[args_.row[number_].param_type][args_.grad_type[number_]](at_, chunk.begin, chunk.end, scalars_);
  }

 private:
  const StepArgs<C>& args_;
  int64_t number_ = -1;
  RowScalars<C> scalars_{};
  std::vector<C> scale_;
  std::vector<const void*> grad_;
  std::vector<C*> exp_avg_sq_, max_exp_avg_sq_;
  RowArgs<C> at_{};
};

// Chunks that a thread updates one after the other. It takes runs of them last first, because the gradients that stage
// 1 read last are the ones still in the cache.
constexpr int64_t kRun = 4;

template <class C>
void update_rows(const StepArgs<C>& args, const Updates<C>& updates, Rows rows) {
  const Chunks chunks(args, rows);
  parallel_for(chunks.size(), chunks.grain(), [&](int64_t begin, int64_t end) {
    ThreadRow<C> row(args);
    for (int64_t last = end; last > begin; last -= kRun)
      for (int64_t c = std::max(begin, last - kRun); c < last; ++c)
        if (const Chunk chunk = chunks[c]; has_any_grad(args, chunk.row)) row.update(updates, chunk);
  });
}

}  // namespace mtadam::cpu
