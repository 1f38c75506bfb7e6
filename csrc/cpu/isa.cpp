#include <cstdlib>
#include <cstring>

#include "blocks.h"

namespace mtadam::cpu {

#define MTADAM_DECLARE(isa)            \
  namespace isa {                      \
  extern const Blocks<double> float64; \
  extern const Blocks<float> float32;  \
  }
MTADAM_DECLARE(baseline)
#if defined(MTADAM_X86)
MTADAM_DECLARE(avx2)
MTADAM_DECLARE(avx512)
#endif
#undef MTADAM_DECLARE

namespace {

struct Choice {
  const char* name;
  const Blocks<double>& float64;
  const Blocks<float>& float32;
};

Choice select() {
#if defined(MTADAM_X86)
  const char* cap = std::getenv("ATEN_CPU_CAPABILITY");
  const bool no_avx2 = cap && !std::strcmp(cap, "default");
  const bool no_avx512 = no_avx2 || (cap && !std::strcmp(cap, "avx2"));
  __builtin_cpu_init();
  if (!no_avx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return {"avx512", avx512::float64, avx512::float32};
  if (!no_avx2 && __builtin_cpu_supports("avx2")) return {"avx2", avx2::float64, avx2::float32};
#endif
  return {"default", baseline::float64, baseline::float32};
}

const Choice& choice() {
  static const Choice chosen = select();
  return chosen;
}

}  // namespace

template <>
const Blocks<double>& blocks() {
  return choice().float64;
}
template <>
const Blocks<float>& blocks() {
  return choice().float32;
}

const char* instruction_set() { return choice().name; }

}  // namespace mtadam::cpu
