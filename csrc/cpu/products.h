// Sums of products of gradients.
#pragma once

#include <algorithm>

#include "blocks.h"
#include "vectors.h"

namespace mtadam::cpu {
namespace {

// Sums run in independent lanes, which are added pairwise at the end. So the result depends neither on the instruction
// set nor on the address. The lanes are a vector of the widest instruction set, and several of the others.
constexpr int64_t kLaneBytes = kLineBytes, kPerLanes = kLaneBytes / kRegisterBytes;
template <class A>
struct Lanes {
  Vector<A> part[kPerLanes];
};
template <class A>
constexpr int64_t kLanes = kLaneBytes / sizeof(A);

// Loads n elements, then zeros.
template <class A, class G>
MTADAM_FN void load_lanes(Lanes<A>& lanes, const G* from, int64_t n) {
  if (n == kLanes<A>) {
    for (int64_t i = 0; i < kPerLanes; ++i) lanes.part[i] = load_as<Vector<A>>(from + i * kWidth<A>);
  } else {
    A value[kLanes<A>] = {};
    for (int64_t i = 0; i < n; ++i) value[i] = load(from[i]);
    std::memcpy(&lanes, value, sizeof value);
  }
}

// The products of T gradients to sum: their squares; those of all pairs, (0, 0), (1, 0), (1, 1), (2, 0), ...; or those
// with kGradsPerPass others, (0, 0), (0, 1), ..., (1, 0), ....
enum class Products { kSquares, kPairs, kOthers };

template <int T, Products kWhich>
constexpr int kProducts = kWhich == Products::kPairs    ? T * (T + 1) / 2
                          : kWhich == Products::kOthers ? T * kGradsPerPass
                                                        : T;

// Adds the products of n elements of each gradient, from element i on, at most a vector of each.
template <class A, class G, int T, Products kWhich>
MTADAM_FN void add_products(const void* const* grads, const void* const* others, int64_t i, int64_t n,
                            Lanes<A> (&sum)[kProducts<T, kWhich>]) {
  constexpr bool kHasOthers = kWhich == Products::kOthers;
  Lanes<A> g[T], other[kGradsPerPass];
  for (int k = 0; k < T; ++k) load_lanes<A>(g[k], static_cast<const G*>(grads[k]) + i, n);
  for (int j = 0; kHasOthers && j < kGradsPerPass; ++j)
    load_lanes<A>(other[j], static_cast<const G*>(others[j]) + i, n);
  for (int k = 0, product = 0; k < T; ++k)
    for (int j = kWhich == Products::kSquares ? k : 0; j < (kHasOthers ? kGradsPerPass : k + 1); ++j, ++product)
      for (int64_t part = 0; part < kPerLanes; ++part)
        sum[product].part[part] += g[k].part[part] * (kHasOthers ? other : g)[j].part[part];
}

// The sums over some tiles, lane by lane in double.
template <class A>
class Totals {
 public:
  MTADAM_FN void add(const Lanes<A>& lanes) {
    MTADAM_EACH(i, kPerLanes) total_[i] += __builtin_convertvector(lanes.part[i], Doubles);
  }

  MTADAM_FN double sum() const {
    double value[kLanes<A>];
    std::memcpy(value, total_, sizeof value);
    for (int64_t width = kLanes<A> / 2; width > 0; width /= 2)
      for (int64_t i = 0; i < width; ++i) value[i] += value[i + width];
    return value[0];
  }

 private:
  using Doubles = VectorOfSize<double, kWidth<A>>;
  Doubles total_[kPerLanes] = {};
};

// Reads all gradients together: memory serves several streams faster than one after another.
template <class A, class G, int T, Products kWhich>
void products(const void* const* grads, const void* const* others, int64_t begin, int64_t end, double* sums) {
  Totals<A> totals[kProducts<T, kWhich>];
  for (int64_t i = begin; i < end;) {
    Lanes<A> sum[kProducts<T, kWhich>] = {};
    const auto add = [&](int64_t n) __attribute__((always_inline)) {
      add_products<A, G, T, kWhich>(grads, others, i, n, sum);
      i += n;
    };
    const int64_t last = std::min(i + kElementsPerTile, end);
    while (i + kLanes<A> <= last) add(kLanes<A>);
    if (i < last) add(last - i);  // in the loop, its calls of memcpy would keep the sums in memory
    for (int k = 0; k < kProducts<T, kWhich>; ++k) totals[k].add(sum[k]);
  }
  for (int k = 0; k < kProducts<T, kWhich>; ++k) sums[k] = totals[k].sum();
}

}  // namespace
}  // namespace mtadam::cpu
