// Tests of the native CPU kernels without Python or torch, for the sanitizers and for every instruction set.
//
//   test_kernels                             runs all tests, prints the instruction set and a hash of all results
//   test_kernels --overrun BUFFER PLACEMENT  runs a step whose buffer of that name (param, exp_avg, combined, grad,
//                                            second, maximum or none) is an element short, on the heap or at a guard
//
// The environment's ATEN_CPU_CAPABILITY (default, avx2, avx512) lowers the instruction set.

#include <cstdio>
#include <string>

#include "../../csrc/cpu/blocks.h"
#include "check.h"
#include "problem.h"
#include "random.h"
#include "tests.h"

namespace {

int run_all() {
  test_conversions();
  test_faults<double>();
  test_faults<float>();
  Hash hash;
  for (const uint64_t of_test :
       {test_steps<double>(), test_steps<float>(), test_combined<double>(), test_combined<float>()})
    hash.add(&of_test, sizeof of_test);
  std::printf("instruction_set=%s\nhash=%016llx\n", mtadam::cpu::instruction_set(),
              static_cast<unsigned long long>(hash.value()));
  return failures ? 1 : 0;
}

// Every buffer has its exact size but the named one, which is an element shorter than the row says.
int overrun(const std::string& name, Placement placement) {
  constexpr int64_t kNumel = 100;
  Problem<float> problem = make_problem<float>(1, placement, {{kNumel, {mtadam::kFloat32, mtadam::kFloat32}}});
  Parameter& row = problem.rows[0];
  const auto tensor = [&](const char* of) {
    return Tensor(mtadam::kFloat32, name == of ? kNumel - 1 : kNumel, placement);
  };
  row.param = tensor("param");
  row.exp_avg = tensor("exp_avg");
  row.combined = tensor("combined");
  row.grad[0] = tensor("grad");
  row.second[0] = tensor("second");
  row.maximum[0] = tensor("maximum");
  Tables<float> tables(problem);
  mtadam::Row sized = tables.step().row[0];
  sized.numel = kNumel;
  mtadam::Step<float> step = tables.step();
  step.row = &sized;
  mtadam::cpu::mtadam_step(step);
  std::printf("survived\n");
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 4 && std::string(argv[1]) == "--overrun")
    return overrun(argv[2], std::string(argv[3]) == "guard" ? Placement::kBeforeGuard : Placement::kHeap);
  return run_all();
}
