// The Python module: tables in, launchers called, no logic.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "cpu/blocks.h"
#include "cpu/parallel.h"
#include "launch.h"

namespace py = pybind11;

namespace {

// The contents of a contiguous buffer (array.array), which must hold `count` items of T.
template <class T>
const T* table(const py::buffer& buffer, int64_t count, const char* name) {
  const py::buffer_info info = buffer.request();
  if (info.size * info.itemsize != count * int64_t(sizeof(T)))
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(info.size * info.itemsize) + " bytes; " +
                                std::to_string(count * sizeof(T)) + " are needed");
  return static_cast<const T*>(info.ptr);
}

template <class T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(address);
}

// A step as Python hands it over: `Step` of csrc/launch.h before its arithmetic type is known.
struct PackedStep {
  int64_t rows, terms, moments, groups;
  py::buffer row, group, weight, grad, grad_type, second, maximum, combined;
  int64_t count, norm, running, scale, gram;

  template <class C>
  mtadam::Step<C> unpack() const {
    return {rows,
            terms,
            moments,
            table<mtadam::Row>(row, rows, "row"),
            table<mtadam::Group>(group, groups, "group"),
            table<double>(weight, groups * terms, "weight"),
            table<int64_t>(grad, terms * rows, "grad"),
            table<int64_t>(grad_type, rows, "grad_type"),
            table<int64_t>(second, moments * rows, "second"),
            table<int64_t>(maximum, moments * rows, "maximum"),
            table<int64_t>(combined, rows, "combined"),
            pointer<float>(count),
            pointer<C>(norm),
            pointer<C>(running),
            pointer<C>(scale),
            pointer<double>(gram)};
  }
};

// Calls the launcher of the step's arithmetic type, without Python's lock.
template <class Launch64, class Launch32>
void launch(bool float64, const PackedStep& packed, const Launch64& launch64, const Launch32& launch32) {
  if (float64) {
    const auto step = packed.unpack<double>();
    const py::gil_scoped_release release;
    launch64(step);
  } else {
    const auto step = packed.unpack<float>();
    const py::gil_scoped_release release;
    launch32(step);
  }
}

void define_cpu(py::module_& module, const char* name, void (*launch64)(const mtadam::Step<double>&),
                void (*launch32)(const mtadam::Step<float>&), const char* doc) {
  module.def(
      name, [=](bool float64, const PackedStep& step) { launch(float64, step, launch64, launch32); }, doc,
      py::arg("float64"), py::arg("step"));
}

#if defined(MTADAM_CUDA)
// The tables of a step on a device: `Device` of csrc/launch.h before its arithmetic type is known.
struct PackedDevice {
  int index;
  int64_t stream, row, group, weight, second, maximum, chunk_start, chunk, chunks, chunk_elements, partial, factors,
      order, queue;
  bool wants_combined;

  template <class C>
  mtadam::cuda::Device<C> unpack() const {
    return {index,
            pointer<void>(stream),
            pointer<mtadam::Row>(row),
            pointer<mtadam::Group>(group),
            pointer<double>(weight),
            pointer<int64_t>(second),
            pointer<int64_t>(maximum),
            pointer<int64_t>(chunk_start),
            pointer<mtadam::cuda::Chunk>(chunk),
            chunks,
            chunk_elements,
            pointer<C>(partial),
            pointer<mtadam::StepFactors<C>>(factors),
            pointer<int32_t>(order),
            pointer<unsigned>(queue),
            wants_combined};
  }
};

void define_cuda(py::module_& module) {
  using namespace mtadam;
  py::class_<PackedDevice>(module, "Device", "The tables of a step on a device; see csrc/launch.h.", py::module_local())
      .def(py::init<int, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                    int64_t, int64_t, int64_t, int64_t, bool>(),
           py::arg("index"), py::arg("stream"), py::arg("row"), py::arg("group"), py::arg("weight"), py::arg("second"),
           py::arg("maximum"), py::arg("chunk_start"), py::arg("chunk"), py::arg("chunks"), py::arg("chunk_elements"),
           py::arg("partial"), py::arg("factors"), py::arg("order"), py::arg("queue"), py::arg("wants_combined"));
  module.def(
      "cuda_run",
      [](bool float64, const PackedStep& step, const PackedDevice& device, unsigned stages) {
        launch(
            float64, step, [&](const Step<double>& s) { cuda::run(s, device.unpack<double>(), stages); },
            [&](const Step<float>& s) { cuda::run(s, device.unpack<float>(), stages); });
      },
      "Launches the stages asked for: 1 term_norms, 2 balance, 4 mtadam_update, 8 term_gram, 16 combined_adam, 32 "
      "mtadam_step, 64 fold_norms.",
      py::arg("float64"), py::arg("step"), py::arg("device"), py::arg("stages"));
  module.def("cuda_rows_at_once", cuda::rows_at_once, "Rows of a launch: of as many addresses as an argument takes.",
             py::arg("terms"), py::arg("wants_combined"));
  module.attr("CUDA_ARCHITECTURES") = MTADAM_CUDA;
}
#endif

}  // namespace

PYBIND11_MODULE(_C, module) {
  using namespace mtadam;
  module.doc() = "Native kernels of mtadam_fused. The tables they take are described in csrc/launch.h.";
  py::class_<PackedStep>(module, "Step", "A step's tables; see csrc/launch.h.", py::module_local())
      .def(py::init<int64_t, int64_t, int64_t, int64_t, py::buffer, py::buffer, py::buffer, py::buffer, py::buffer,
                    py::buffer, py::buffer, py::buffer, int64_t, int64_t, int64_t, int64_t, int64_t>(),
           py::arg("rows"), py::arg("terms"), py::arg("moments"), py::arg("groups"), py::arg("row"), py::arg("group"),
           py::arg("weight"), py::arg("grad"), py::arg("grad_type"), py::arg("second"), py::arg("maximum"),
           py::arg("combined"), py::arg("count"), py::arg("norm"), py::arg("running"), py::arg("scale"),
           py::arg("gram"));
  define_cpu(module, "term_norms", cpu::term_norms<double>, cpu::term_norms<float>, "Stage 1: fills norm.");
  define_cpu(module, "balance", cpu::balance<double>, cpu::balance<float>,
             "Stage 2: advances running and count, fills scale.");
  define_cpu(module, "mtadam_update", cpu::mtadam_update<double>, cpu::mtadam_update<float>,
             "Stage 3: advances parameters and moments.");
  define_cpu(module, "mtadam_step", cpu::mtadam_step<double>, cpu::mtadam_step<float>, "The three stages in one call.");
  define_cpu(module, "term_gram", cpu::term_gram<double>, cpu::term_gram<float>, "Fills gram.");
  define_cpu(module, "combined_adam", cpu::combined_adam<double>, cpu::combined_adam<float>,
             "Advances count, parameters and moments by the gradients times scale.");
  module.def("instruction_set", cpu::instruction_set, "The instruction set that the CPU kernels run on.");
  module.def("threading", cpu::threading, "Whose threads run the CPU kernels: torch, openmp or serial.");
  module.attr("compiler") = MTADAM_COMPILER;
#if defined(MTADAM_CUDA)
  define_cuda(module);
#endif
}
