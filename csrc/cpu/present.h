// The gradients that reach a row, a tile of elements at a time.
#pragma once

#include <vector>

#include "blocks.h"
#include "stages.h"

namespace mtadam::cpu {

// The terms with a gradient, and its address.
struct Present {
  int64_t type;
  std::vector<int64_t> term;
  std::vector<const void*> grad;

  int64_t count() const { return int64_t(term.size()); }
};

// Calls body(present, n) for every n elements of the chunk.
template <class C, class Body>
void for_tiles(const StepArgs<C>& args, const Chunk& chunk, const Body& body) {
  static thread_local Present present;  // a step allocates nothing
  present.type = args.grad_type[chunk.row];
  for (int64_t i = chunk.begin; i < chunk.end; i += kElementsPerTile) {
    present.term.clear();
    present.grad.clear();
    for (int64_t k = 0; k < args.terms; ++k)
      if (const int64_t grad = args.grad[k * args.rows + chunk.row]) {
        present.term.push_back(k);
        present.grad.push_back(address(grad, present.type, i));
      }
    body(present, std::min(kElementsPerTile, chunk.end - i));
  }
}

}  // namespace mtadam::cpu
