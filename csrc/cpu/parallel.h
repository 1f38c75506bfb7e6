// Loops on torch's own threads, so that the process has one pool and torch.set_num_threads holds here too.
#pragma once

#include <cstdint>

namespace mtadam::cpu {

// Calls body(begin, end) on disjoint ranges that cover [0, n), of at least `grain` each. Serial inside another parallel
// loop.
template <class Body>
void parallel_for(int64_t n, int64_t grain, const Body& body);

// Returns how many threads a loop of this thread would run on.
int64_t threads();

// Returns whose threads run the loops: "torch", "openmp" or "serial"; see parallel.cpp.
const char* threading();

namespace detail {
using Part = void (*)(int64_t begin, int64_t end, void* body);
void run(int64_t n, int64_t grain, Part part, void* body);
}  // namespace detail

template <class Body>
void parallel_for(int64_t n, int64_t grain, const Body& body) {
  detail::run(
      n, grain, [](int64_t begin, int64_t end, void* b) { (*static_cast<const Body*>(b))(begin, end); },
      const_cast<Body*>(&body));
}

}  // namespace mtadam::cpu
