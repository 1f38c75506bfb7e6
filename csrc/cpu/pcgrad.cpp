#include "../launch.h"
#include "../rule_math.h"

namespace mtadam::cpu {

void run_rule(const PCGradArgs& args) {
  double coefficients[kMostRuleTerms * kMostRuleTerms];  // [terms, terms]
  for (int64_t k = 0; k < args.terms; ++k)
    pcgrad_project(args.terms, k, args.seed, *args.step, args.gram, coefficients + k * args.terms);
  for (int64_t k = 0; k < args.terms; ++k)
    args.weight[k] = pcgrad_weight(args.terms, k, coefficients, args.preference, args.mean, args.gram);
  *args.step += 1;
}

}  // namespace mtadam::cpu
