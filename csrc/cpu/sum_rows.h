// Sums over the elements of each row, in an order that does not depend on the threads.
#pragma once

#include <vector>

#include "parallel.h"
#include "stages.h"

namespace mtadam::cpu {

// Calls `of_row` with each row and its `values` sums. `of_chunk` adds to the sums of one chunk, which start at 0.
template <class C, class OfChunk, class OfRow>
void sum_rows(const StepArgs<C>& args, Rows rows, int64_t values, const OfChunk& of_chunk, const OfRow& of_row) {
  const Chunks chunks(args, rows);
  static thread_local std::vector<double> scratch;  // [chunks + 1, values], of the calling thread
  scratch.assign((chunks.size() + 1) * values, 0.0);
  double* const sums = scratch.data();
  parallel_for(chunks.size(), chunks.grain(), [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) of_chunk(chunks[c], sums + c * values);
  });
  double* const total = sums + chunks.size() * values;
  for (int64_t r = rows.first; r < rows.last; ++r) {
    std::fill(total, total + values, 0.0);
    for (int64_t c = chunks.first_of(r); c < chunks.first_of(r + 1); ++c)
      for (int64_t i = 0; i < values; ++i) total[i] += sums[c * values + i];
    of_row(r, total);
  }
}

}  // namespace mtadam::cpu
