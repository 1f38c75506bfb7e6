// The functions of csrc/update_math.h for Python, element by element over arrays; test_formulas.py compares them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "../../../csrc/launch.h"

namespace py = pybind11;
using namespace mtadam;

namespace {

constexpr int64_t kTerms = 4;  // consecutive elements that are the terms of a layer

template <class C>
using Formula = std::function<std::vector<C>(const std::vector<C>& x)>;  // one element's arguments to its results

template <class C>
const std::map<std::string, Formula<C>>& formulas() {
  using V = std::vector<C>;
  static const std::map<std::string, Formula<C>> found = {
      {"has_started", [](const V& x) -> V { return {C(has_started(x[0]))}; }},
      {"is_finite", [](const V& x) -> V { return {C(is_finite(x[0]))}; }},
      {"running_norm", [](const V& x) -> V { return {running_norm(x[0], x[1], x[2], x[3] != 0, x[4] != 0)}; }},
      {"norm_decay", [](const V& x) -> V { return {norm_decay<C>(x[0], x[1], int64_t(x[2]))}; }},
      {"term_scale", [](const V& x) -> V { return {term_scale(x[0], x[1], x[2])}; }},
      {"balanced_gradient", [](const V& x) -> V { return {balanced_gradient(x[0], x[1], x[2], x[3])}; }},
      {"add_weighted", [](const V& x) -> V { return {add_weighted(x[0], x[1], x[2])}; }},
      {"first_moment", [](const V& x) -> V { return {first_moment(x[0], x[1], x[2], C(1) - x[2])}; }},
      {"second_moment", [](const V& x) -> V { return {second_moment(x[0], x[1], x[2], C(1) - x[2])}; }},
      {"nan_max", [](const V& x) -> V { return {nan_max(x[0], x[1])}; }},
      {"add_term",
       [](const V& x) -> V {
         const Group group{0, 0, x[6], 0, 0, x[7], 0, x[5]};
         C exp_avg_sq = x[3], combined = x[4];
         add_term(x[0], x[1], x[2], row_scalars<C>(group, {}), exp_avg_sq, combined);
         return {exp_avg_sq, combined};
       }},
      {"updated_param",  // with the factors of step_factors
       [](const V& x) -> V {
         return {updated_param(x[0], x[1], x[2], step_factors<C>(x[3], x[4], x[5], x[6], x[7], x[8]))};
       }},
  };
  return found;
}

template <class C>
std::vector<std::vector<C>> evaluate(const std::string& name, const std::vector<std::vector<C>>& arguments) {
  std::vector<std::vector<C>> results;
  for (size_t i = 0; i < arguments[0].size(); ++i) {
    std::vector<C> element;
    for (const auto& argument : arguments) element.push_back(argument[i]);
    const size_t first = i / kTerms * kTerms;  // of the layer
    const auto of_element = name == "anchor_of"
                                ? std::vector<C>{anchor_of(kTerms, &arguments[0][first], int64_t(arguments[1][first]))}
                                : formulas<C>().at(name)(element);
    results.resize(of_element.size());
    for (size_t n = 0; n < of_element.size(); ++n) results[n].push_back(of_element[n]);
  }
  return results;
}

}  // namespace

PYBIND11_MODULE(formulas, module) {
  module.def("float64", evaluate<double>);
  module.def("float32", evaluate<float>);
}
