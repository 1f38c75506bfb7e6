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

using Launcher64 = void (*)(const mtadam::Step<double>&);
using Launcher32 = void (*)(const mtadam::Step<float>&);

template <class C>
void launch(void (*launcher)(const mtadam::Step<C>&), int64_t rows, int64_t terms, int64_t groups,
            const py::buffer& row, const py::buffer& group, const py::buffer& weight, const py::buffer& grad,
            const py::buffer& grad_type, const py::buffer& second, const py::buffer& maximum,
            const py::buffer& combined, int64_t count, int64_t norm, int64_t running, int64_t scale) {
  const mtadam::Step<C> step{rows,
                             terms,
                             table<mtadam::Row>(row, rows, "row"),
                             table<mtadam::Group>(group, groups, "group"),
                             table<double>(weight, groups * terms, "weight"),
                             table<int64_t>(grad, terms * rows, "grad"),
                             table<int64_t>(grad_type, rows, "grad_type"),
                             table<int64_t>(second, terms * rows, "second"),
                             table<int64_t>(maximum, terms * rows, "maximum"),
                             table<int64_t>(combined, rows, "combined"),
                             pointer<float>(count),
                             pointer<C>(norm),
                             pointer<C>(running),
                             pointer<C>(scale)};
  const py::gil_scoped_release release;
  launcher(step);
}

// One Python function for both arithmetic types: `float64` picks.
void define(py::module_& module, const char* name, Launcher64 launch64, Launcher32 launch32, const char* doc) {
  module.def(
      name,
      [=](bool float64, int64_t rows, int64_t terms, int64_t groups, const py::buffer& row, const py::buffer& group,
          const py::buffer& weight, const py::buffer& grad, const py::buffer& grad_type, const py::buffer& second,
          const py::buffer& maximum, const py::buffer& combined, int64_t count, int64_t norm, int64_t running,
          int64_t scale) {
        const auto call = [&](auto launcher) {
          launch(launcher, rows, terms, groups, row, group, weight, grad, grad_type, second, maximum, combined, count,
                 norm, running, scale);
        };
        float64 ? call(launch64) : call(launch32);
      },
      doc, py::arg("float64"), py::arg("rows"), py::arg("terms"), py::arg("groups"), py::arg("row"), py::arg("group"),
      py::arg("weight"), py::arg("grad"), py::arg("grad_type"), py::arg("second"), py::arg("maximum"),
      py::arg("combined"), py::arg("count"), py::arg("norm"), py::arg("running"), py::arg("scale"));
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  using namespace mtadam;
  module.doc() = "Native kernels of mtadam_fused. The tables they take are described in csrc/launch.h.";
  define(module, "term_norms", cpu::term_norms<double>, cpu::term_norms<float>, "Stage 1: fills norm.");
  define(module, "balance", cpu::balance<double>, cpu::balance<float>, "Stage 2: advances running, fills scale.");
  define(module, "mtadam_update", cpu::mtadam_update<double>, cpu::mtadam_update<float>,
         "Stage 3: advances parameters, moments and step counts.");
  define(module, "mtadam_step", cpu::mtadam_step<double>, cpu::mtadam_step<float>, "The three stages in one call.");
  module.def("instruction_set", cpu::instruction_set, "The instruction set that the CPU kernels run on.");
  module.def("threading", cpu::threading, "Whose threads run the CPU kernels: torch, openmp or serial.");
  module.attr("compiler") = MTADAM_COMPILER;
}
