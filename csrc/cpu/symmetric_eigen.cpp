#include <algorithm>

#include "../launch.h"
#include "../rule_math.h"

namespace mtadam::cpu {

void run_rule(const EigenArgs& args) {
  double matrix[kMostRuleTerms * kMostRuleTerms], peaks[kMostRuleTerms];
  std::copy(args.matrix, args.matrix + args.size * args.size, matrix);
  symmetric_eigen(args.size, matrix, peaks, args.value, args.vector, args.is_null, 0, 1, [] {});
}

}  // namespace mtadam::cpu
