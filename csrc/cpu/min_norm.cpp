#include <algorithm>

#include "../launch.h"
#include "../rule_math.h"

namespace mtadam::cpu {

void run_rule(const MinNormArgs& args) {
  UnitGram unit;
  for (int64_t r = 0; r < args.size; ++r) unit.fill_row(args.size, r, args.gram);
  double least = HUGE_VAL, weights[kMostVectors];
  std::fill_n(args.weight, args.size, 0.0);
  for (unsigned support = 1; support < 1u << args.size; ++support) {
    const double square = least_on_support(support, unit, weights);
    if (!(square < least)) continue;
    least = square;
    std::copy_n(weights, args.size, args.weight);
  }
}

}  // namespace mtadam::cpu
