// The Python module: flat buffers in, launchers called, no logic.
#include <pybind11/pybind11.h>

#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/blocks.h"
#include "cpu/parallel.h"
#include "launch.h"
#include "rule_math.h"

namespace py = pybind11;

namespace {

// Arguments that Python has filled as one contiguous buffer of 64-bit values.
template <class Args>
Args unpack(const py::buffer& buffer) {
  const py::buffer_info info = buffer.request();
  if (info.size * info.itemsize != int64_t(sizeof(Args)))
    throw std::invalid_argument("the arguments have " + std::to_string(info.size * info.itemsize) + " bytes; " +
                                std::to_string(sizeof(Args)) + " are needed: reinstall mtadam_fused");
  if (!PyBuffer_IsContiguous(info.view(), 'C'))
    throw std::invalid_argument("the arguments are not contiguous: pass a dense buffer, such as an array");
  Args args;
  std::memcpy(&args, info.ptr, sizeof args);
  return args;
}

// Defines a kernel for both arithmetic types. It runs without Python's lock.
void define_cpu(py::module_& module, const char* name, void (*launch64)(const mtadam::StepArgs<double>&),
                void (*launch32)(const mtadam::StepArgs<float>&), const char* doc) {
  module.def(
      name,
      [=](bool float64, const py::buffer& args) {
        if (float64) {
          const auto step = unpack<mtadam::StepArgs<double>>(args);
          const py::gil_scoped_release release;
          launch64(step);
        } else {
          const auto step = unpack<mtadam::StepArgs<float>>(args);
          const py::gil_scoped_release release;
          launch32(step);
        }
      },
      doc, py::arg("float64"), py::arg("args"));
}

// Defines a rule's kernel for the CPU, and with the prefix cuda_ the launch of that on a device.
template <class Args>
void define_rule(py::module_& module, const std::string& name, const char* doc) {
  module.def(
      name.c_str(), [](const py::buffer& args) { mtadam::cpu::run_rule(unpack<Args>(args)); }, doc, py::arg("args"));
#if defined(MTADAM_CUDA)
  module.def(("cuda_" + name).c_str(),
             [](const py::buffer& buffer, int device, uintptr_t stream) {
               const auto args = unpack<Args>(buffer);
               const py::gil_scoped_release release;
               mtadam::cuda::run_rule(args, device, reinterpret_cast<void*>(stream));
             },
             doc, py::arg("args"), py::arg("device"), py::arg("stream"));
#endif
}

#if defined(MTADAM_CUDA)
template <class C>
void run_cuda(const py::buffer& host_args, const py::buffer& device_args, unsigned stages) {
  const auto host = unpack<mtadam::StepArgs<C>>(host_args);
  const auto device = unpack<mtadam::cuda::DeviceArgs<C>>(device_args);
  const py::gil_scoped_release release;
  mtadam::cuda::run(host, device, stages);
}

void define_cuda(py::module_& module) {
  using namespace mtadam;
  module.def(
      "cuda_run",
      [](bool float64, const py::buffer& host, const py::buffer& device, unsigned stages) {
        float64 ? run_cuda<double>(host, device, stages) : run_cuda<float>(host, device, stages);
      },
      "Launch the stages, a sum of the module's constants.", py::arg("float64"), py::arg("host"), py::arg("device"),
      py::arg("stages"));
  module.def("cuda_find_problem", cuda::find_problem,
             "Return why the kernels cannot run on a device, empty if they can.", py::arg("device"));
  module.def("cuda_rows_at_once", cuda::rows_at_once, "Return how many rows one launch takes.", py::arg("terms"),
             py::arg("wants_combined"));
  const std::pair<const char*, cuda::Stage> stages[] = {
      {"TERM_NORMS", cuda::kTermNorms},       {"BALANCE", cuda::kBalance},
      {"MTADAM_UPDATE", cuda::kMtadamUpdate}, {"TERM_GRAM", cuda::kTermGram},
      {"COMBINED_ADAM", cuda::kCombinedAdam}, {"MTADAM_STEP", cuda::kMtadamStep},
      {"FOLD_NORMS", cuda::kFoldNorms},       {"BEGIN_STEP", cuda::kBeginStep}};
  for (const auto& [name, stage] : stages) module.attr(name) = unsigned(stage);
  module.attr("CUDA_ARCHITECTURES") = MTADAM_CUDA;
}
#endif

}  // namespace

PYBIND11_MODULE(_C, module) {
  using namespace mtadam;
  module.doc() = "Native kernels of mtadam_fused. csrc/launch.h describes the arguments they take.";
  define_cpu(module, "term_norms", cpu::term_norms<double>, cpu::term_norms<float>, "Stage 1: fill norm.");
  define_cpu(module, "balance", cpu::balance<double>, cpu::balance<float>,
             "Stage 2: advance norm_avg and steps, fill scale.");
  define_cpu(module, "mtadam_update", cpu::mtadam_update<double>, cpu::mtadam_update<float>,
             "Stage 3: advance parameters and moments.");
  define_cpu(module, "mtadam_step", cpu::mtadam_step<double>, cpu::mtadam_step<float>, "Run the three stages.");
  define_cpu(module, "term_gram", cpu::term_gram<double>, cpu::term_gram<float>, "Fill gram.");
  define_cpu(module, "combined_adam", cpu::combined_adam<double>, cpu::combined_adam<float>,
             "Advance steps, parameters and moments by the gradients times scale.");
  define_rule<PCGradArgs>(module, "pcgrad", "Fill weight from PCGrad's dot products, and count the step.");
  define_rule<EigenArgs>(module, "symmetric_eigen", "Fill value, vector and is_null.");
  define_rule<MinNormArgs>(module, "min_norm", "Fill weight with that of the point of least norm.");
  module.attr("MOST_RULE_TERMS") = kMostRuleTerms;
  module.def("instruction_set", cpu::instruction_set, "Return the instruction set that the CPU kernels run on.");
  module.def("threading", cpu::threading, "Return whose threads run the CPU kernels: torch, openmp or serial.");
  module.attr("compiler") = MTADAM_COMPILER;
#if defined(MTADAM_CUDA)
  define_cuda(module);
#endif
}
