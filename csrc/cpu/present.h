// The gradients that reach a row, a tile of elements at a time.
#pragma once

#include <vector>

#include "blocks.h"
#include "stages.h"

namespace mtadam::cpu {

// The terms with a gradient, and where it is.
struct Present {
  int64_t type;
  std::vector<int64_t> term;
  std::vector<const void*> grad;

  int64_t count() const { return int64_t(term.size()); }
};

// Calls body(present, n) for n elements of the chunk after n elements.
template <class C, class Body>
void for_tiles(const Step<C>& step, const Chunk& chunk, const Body& body) {
  static thread_local Present present;  // a step allocates nothing
  present.type = step.grad_type[chunk.row];
  for (int64_t i = chunk.begin; i < chunk.end; i += kTile) {
    present.term.clear();
    present.grad.clear();
    for (int64_t k = 0; k < step.terms; ++k)
      if (const int64_t grad = step.grad[k * step.rows + chunk.row]) {
        present.term.push_back(k);
        present.grad.push_back(address(grad, present.type, i));
      }
    body(present, std::min(kTile, chunk.end - i));
  }
}

}  // namespace mtadam::cpu
