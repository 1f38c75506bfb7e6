#include "blocks.h"

#include "products.h"
#include "updates.h"

// The functions for 1 to kGradsPerPass gradients.
#define MTADAM_SUMS(of, A, G) \
  {products<A, G, 1, of>, products<A, G, 2, of>, products<A, G, 3, of>, products<A, G, 4, of>}

#define MTADAM_FLOAT_SUMS(of, A) {{}, MTADAM_SUMS(of, A, float), MTADAM_SUMS(of, A, BFloat16), MTADAM_SUMS(of, A, Half)}

// The functions for float32 arithmetic and the storage types that go with it.
#define MTADAM_UPDATES(Of)                                                                      \
  {                                                                                             \
    {}, {nullptr, update<Of, float, float, float>},                                             \
        {nullptr, update<Of, BFloat16, float, float>, update<Of, BFloat16, BFloat16, float>}, { \
      nullptr, update<Of, Half, float, float>, nullptr, update<Of, Half, Half, float>           \
    }                                                                                           \
  }

// One object of functions per instruction set. The build names it: MTADAM_ISA is baseline, avx2 or avx512.
namespace mtadam::cpu::MTADAM_ISA {

extern const Blocks<double> float64;
const Blocks<double> float64 = {
    {MTADAM_SUMS(Products::kSquares, double, double)}, {MTADAM_SUMS(Products::kPairs, double, double)},
    {MTADAM_SUMS(Products::kOthers, double, double)},  {{update<MTAdamUpdate, double, double, double>}},
    {{update<CombinedAdam, double, double, double>}},
};

extern const Blocks<float> float32;
const Blocks<float> float32 = {
    MTADAM_FLOAT_SUMS(Products::kSquares, float),
    MTADAM_FLOAT_SUMS(Products::kPairs, double),
    MTADAM_FLOAT_SUMS(Products::kOthers, double),
    MTADAM_UPDATES(MTAdamUpdate),
    MTADAM_UPDATES(CombinedAdam),
};

}  // namespace mtadam::cpu::MTADAM_ISA
