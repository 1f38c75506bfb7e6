// The unit of parallel work: a chunk of one row.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../launch.h"

namespace mtadam::cpu {

// Elements of a chunk: few enough to share small layers evenly, and enough that memory serves each gradient for long.
constexpr int64_t kChunk = 8192;

// Elements that are worth a thread: fewer take less time than starting one (some microseconds).
constexpr int64_t kGrain = 16384;

// A range of rows, [first, last), of a step.
struct Rows {
  int64_t first, last;
};

struct Chunk {
  int64_t row, begin, end;  // elements [begin, end) of the row
};

// The chunks of a range of rows, numbered in order. Finds a chunk by its number without a list of them all.
class Chunks {
 public:
  template <class C>
  Chunks(const StepArgs<C>& args, Rows rows) : row_(args.row), rows_(rows), start_(scratch()) {
    start_.assign(1, 0);
    for (int64_t r = rows.first; r < rows.last; ++r) {
      start_.push_back(start_.back() + count(args.row[r].numel));
      elements_ += args.row[r].numel;
    }
  }

  static int64_t count(int64_t numel) { return (numel + kChunk - 1) / kChunk; }

  int64_t size() const { return start_.back(); }

  // Returns how many chunks of the average size are worth a thread.
  int64_t grain() const { return 1 + kGrain * size() / (elements_ + 1); }

  // Returns the number of a row's first chunk. That of the next row ends the row's chunks.
  int64_t first_of(int64_t row) const { return start_[row - rows_.first]; }

  Chunk operator[](int64_t number) const {
    const int64_t row = rows_.first + (std::upper_bound(start_.begin(), start_.end(), number) - start_.begin()) - 1;
    const int64_t begin = (number - first_of(row)) * kChunk;
    return {row, begin, std::min(begin + kChunk, row_[row].numel)};
  }

 private:
  // The calling thread keeps it from step to step, so that a step allocates nothing.
  static std::vector<int64_t>& scratch() {
    static thread_local std::vector<int64_t> starts;
    return starts;
  }

  const Row* row_;
  Rows rows_;
  int64_t elements_ = 0;
  std::vector<int64_t>& start_;
};

}  // namespace mtadam::cpu
