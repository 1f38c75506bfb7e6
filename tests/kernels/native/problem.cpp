#include "problem.h"

#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "random.h"

using mtadam::Group;

template <>
std::vector<Storage> storages<double>() {
  return {{mtadam::kFloat64, mtadam::kFloat64}};
}

template <>
std::vector<Storage> storages<float>() {
  using namespace mtadam;
  return {
      {kFloat32, kFloat32}, {kBFloat16, kBFloat16}, {kBFloat16, kFloat32}, {kFloat16, kFloat16}, {kFloat16, kFloat32}};
}

// ---------------------------------------------------------------------------------------------------------------------
// Running
// ---------------------------------------------------------------------------------------------------------------------

template <class C>
Tables<C>::Tables(Problem<C>& problem) : problem_(problem) {
  const auto address = [](const std::optional<Tensor>& tensor) { return tensor ? tensor->address() : 0; };
  for (const Parameter& row : problem.rows) {
    row_.push_back({row.param.address(), row.exp_avg.address(), row.param.numel(), row.group, row.param.type()});
    grad_type_.push_back(row.grad_type);
    combined_.push_back(address(row.combined));
  }
  for (int64_t k = 0; k < problem.terms; ++k)
    for (const Parameter& row : problem.rows) {
      grad_.push_back(address(row.grad[k]));
      second_.push_back(address(row.second[k]));
      maximum_.push_back(address(row.maximum[k]));
    }
  // AddressSanitizer is to see the end of the tables too.
  for (auto* table : {&grad_type_, &combined_, &grad_, &second_, &maximum_}) table->shrink_to_fit();
  row_.shrink_to_fit();
}

template <class C>
mtadam::Step<C> Tables<C>::step() {
  return {int64_t(row_.size()),   problem_.terms,          problem_.terms,        row_.data(),
          problem_.groups.data(), problem_.weight.data(),  grad_.data(),          grad_type_.data(),
          second_.data(),         maximum_.data(),         combined_.data(),      problem_.count.data(),
          problem_.norm.data(),   problem_.running.data(), problem_.scale.data(), nullptr};
}

template <class C>
void run_fused(Problem<C>& problem) {
  mtadam::cpu::mtadam_step(Tables<C>(problem).step());
}

template <class C>
void run_staged(Problem<C>& problem) {
  Tables<C> tables(problem);
  mtadam::cpu::term_norms(tables.step());
  mtadam::cpu::balance(tables.step());
  mtadam::cpu::mtadam_update(tables.step());
}

template <class C>
uint64_t hash_of(const Problem<C>& problem) {
  Hash hash;
  const auto add = [&](const std::optional<Tensor>& tensor) {
    if (tensor) hash.add(tensor->buffer().data(), tensor->buffer().bytes());
  };
  for (const Parameter& row : problem.rows) {
    hash.add(row.param.buffer().data(), row.param.buffer().bytes());
    hash.add(row.exp_avg.buffer().data(), row.exp_avg.buffer().bytes());
    add(row.combined);
    for (const auto& tensor : row.second) add(tensor);
    for (const auto& tensor : row.maximum) add(tensor);
  }
  hash.add(problem.count.data(), problem.count.size() * sizeof(float));
  for (const auto* values : {&problem.norm, &problem.running, &problem.scale})
    hash.add(values->data(), values->size() * sizeof(C));
  return hash.value();
}

// ---------------------------------------------------------------------------------------------------------------------
// Making
// ---------------------------------------------------------------------------------------------------------------------

namespace {

// AMSGrad shows only in the maxima that a pair has; it is on in every other group.
bool has_maxima(int64_t group) { return group & 1; }

// Hyper-parameters large enough that a mistake in one of them shows in 16 bits.
Group make_group(int64_t g) {
  const auto flag = [g](int bit) { return double(g >> bit & 1); };
  Group group{};
  group.lr = 0.01 * double(1 + g % 3);
  group.beta1 = std::array{0.9, 0.5, 0.0}[g % 3];
  group.beta2 = std::array{0.999, 0.9}[g % 2];
  group.beta3 = std::array{0.9, 0.99, 0.5}[g % 3];
  group.eps = g % 5 == 0 ? 1e-2 : 1e-8;
  group.l2_decay = 0.3 * flag(1);
  group.decoupled_decay = 0.5 * flag(2);
  group.direction = 1 - 2 * flag(3);
  group.first_nonzero = flag(4);
  return group;
}

void fill(Tensor& tensor, Random random, double size) {
  for (int64_t i = 0; i < tensor.numel(); ++i) tensor.set(i, random.between(-size, size));
}

bool is_row_reached(int64_t row, int64_t step) { return Random({row, 3}).below(8) && Random({row, step, 4}).below(8); }

bool is_present(int64_t row, int64_t term, int64_t step) {
  return is_row_reached(row, step) && Random({row, term, 5}).below(8) && Random({row, term, step, 6}).below(4);
}

// Terms of unlike size, some of them silent (zeros) and some all but silent (norms below the published threshold).
double gradient_size(int64_t row, int64_t term, int64_t step) {
  switch (Random({row, term, step, 7}).below(8)) {
    case 0:
      return 0;
    case 1:
      return 1e-14;
    default:
      return std::array{1.0, 0.03, 20.0, 0.5, 3.0}[term % 5];
  }
}

void fill_gradient(Tensor& grad, Random random, double size) {
  for (int64_t i = 0; i < grad.numel(); ++i)
    grad.set(i, std::ldexp(random.between(-size, size), -int(random.below(6))));
}

}  // namespace

template <class C>
Problem<C> make_problem(int64_t terms, Placement placement, const std::vector<Plan>& plans) {
  Problem<C> problem;
  problem.terms = terms;
  problem.placement = placement;
  for (int64_t g = 0; g < kGroups; ++g) {
    problem.groups.push_back(make_group(g));
    for (int64_t k = 0; k < terms; ++k) problem.weight.push_back(Random({g, k}).between(0.5, 2));
  }
  const std::vector<std::optional<Tensor>> none(terms);
  for (const auto& [numel, storage] : plans) {
    const auto r = int64_t(problem.rows.size());
    const Tensor param(storage.param, numel, placement), exp_avg(kArithmetic<C>, numel, placement);
    Parameter& row =
        problem.rows.emplace_back(Parameter{r % kGroups, storage.grad, param, exp_avg, {}, none, none, none});
    fill(row.param, {r, 1}, 2);
    if (r % 3) fill(row.combined.emplace(storage.param, numel, placement), {r, 2}, 1);
    problem.count.push_back(r % 4 ? 0 : 999);
  }
  problem.norm.assign(plans.size() * terms, std::numeric_limits<C>::quiet_NaN());
  problem.scale = problem.running = problem.norm;
  return problem;
}

template <class C>
void give_gradients(Problem<C>& problem, int64_t step) {
  for (size_t r = 0; r < problem.rows.size(); ++r) {
    Parameter& row = problem.rows[r];
    const int64_t numel = row.param.numel();
    for (int64_t k = 0; k < problem.terms; ++k) {
      row.grad[k].reset();
      if (!is_present(r, k, step)) continue;
      row.grad[k].emplace(row.grad_type, numel, problem.placement);
      fill_gradient(*row.grad[k], {int64_t(r), k, step}, gradient_size(r, k, step));
      if (row.second[k]) continue;
      row.second[k].emplace(kArithmetic<C>, numel, problem.placement);
      if (has_maxima(problem.rows[r].group)) row.maximum[k].emplace(kArithmetic<C>, numel, problem.placement);
    }
  }
}

#define INSTANTIATE(C)                                                               \
  template class Tables<C>;                                                          \
  template void run_fused(Problem<C>&);                                              \
  template void run_staged(Problem<C>&);                                             \
  template uint64_t hash_of(const Problem<C>&);                                      \
  template Problem<C> make_problem<C>(int64_t, Placement, const std::vector<Plan>&); \
  template void give_gradients(Problem<C>&, int64_t);
INSTANTIATE(double)
INSTANTIATE(float)
