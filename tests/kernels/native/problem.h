// Steps to run: made-up parameters, hyper-parameters and gradients, the same on every machine. Everything is
// instantiated for double and float.
#pragma once

#include <cstdint>
#include <optional>
#include <type_traits>
#include <vector>

#include "../../csrc/launch.h"
#include "buffer.h"

struct Storage {
  int64_t param, grad;
};

template <class C>
constexpr int64_t kArithmetic = std::is_same_v<C, double> ? mtadam::kFloat64 : mtadam::kFloat32;

// The supported pairs of storage types of arithmetic type C.
template <class C>
std::vector<Storage> storages();

struct Parameter {
  int64_t group, grad_type;
  Tensor param, exp_avg;
  std::optional<Tensor> combined;
  std::vector<std::optional<Tensor>> grad, second, maximum;  // [terms]

  bool is_reached() const {
    for (const auto& tensor : grad)
      if (tensor) return true;
    return false;
  }
};

// All that a step reads and writes, by value.
template <class C>
struct Problem {
  int64_t terms = 0;
  Placement placement = Placement::kHeap;
  std::vector<mtadam::Group> groups;
  std::vector<double> weight;  // [groups, terms]
  std::vector<Parameter> rows;
  std::vector<float> count;             // [rows]
  std::vector<C> norm, running, scale;  // [rows, terms]

  const mtadam::Group& group(size_t row) const { return groups[rows[row].group]; }
  size_t pair(size_t row, int64_t term) const { return row * terms + term; }
};

// The tables of launch.h over a problem, which must outlive them.
template <class C>
class Tables {
 public:
  explicit Tables(Problem<C>& problem);
  mtadam::Step<C> step();

 private:
  Problem<C>& problem_;
  std::vector<mtadam::Row> row_;
  std::vector<int64_t> grad_type_, combined_, grad_, second_, maximum_;
};

// A step as the package runs it, and stage by stage.
template <class C>
void run_fused(Problem<C>& problem);
template <class C>
void run_staged(Problem<C>& problem);

// A hash of all that a step writes.
template <class C>
uint64_t hash_of(const Problem<C>& problem);

// One parameter to make.
struct Plan {
  int64_t numel;
  Storage storage;
};

// Row r belongs to group r modulo this; the groups have every combination of the flags.
constexpr int64_t kGroups = 32;

// No parameter has gradients yet, and no pair state.
template <class C>
Problem<C> make_problem(int64_t terms, Placement placement, const std::vector<Plan>& plans);

// The gradients of a step, and the state of the pairs that they are the first to reach.
template <class C>
void give_gradients(Problem<C>& problem, int64_t step);
