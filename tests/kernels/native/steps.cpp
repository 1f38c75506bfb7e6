// Takes steps with all CPU kernels on numbers of its own, and prints a digest of every bit that they write. So builds
// for different processors can be compared. beta1 and beta2 have few digits: then no library's pow rounds.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "../../../csrc/float16.h"
#include "../../../csrc/launch.h"

namespace {

using namespace mtadam;

constexpr int64_t kNumels[] = {0, 1, 3, 17, 127, 1030, 8203, 40000};
constexpr int64_t kRows = std::size(kNumels);

// FNV-1a.
struct Digest {
  uint64_t value = 0xcbf29ce484222325u;

  void add(const void* bytes, size_t n) {
    for (size_t i = 0; i < n; ++i) value = (value ^ static_cast<const unsigned char*>(bytes)[i]) * 0x100000001b3u;
  }
};

// Numbers from -1 to 1.
struct Random {
  uint64_t state = 1;

  float operator()() {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return float(int32_t(state >> 32)) * 0x1p-31f;
  }
};

template <class T>
std::vector<std::vector<T>> tensors(int64_t terms, Random& random, float size) {
  std::vector<std::vector<T>> made;
  for (int64_t k = 0; k < terms; ++k)
    for (const int64_t numel : kNumels) {
      made.emplace_back(numel);
      for (T& x : made.back()) store(&x, size * random());
    }
  return made;
}

template <class T>
std::vector<int64_t> addresses(const std::vector<std::vector<T>>& of) {
  std::vector<int64_t> made;
  for (const auto& tensor : of) made.push_back(reinterpret_cast<int64_t>(tensor.data()));
  return made;
}

template <class C, class P, class G>
void run(int64_t param_type, int64_t grad_type, int64_t terms, bool is_shared, bool amsgrad, Digest& digest) {
  Random random;
  const int64_t moments = is_shared ? 1 : terms;
  auto param = tensors<P>(1, random, 1.0f), combined = tensors<P>(1, random, 0.0f);
  auto exp_avg = tensors<C>(1, random, 0.0f), exp_avg_sq = tensors<C>(moments, random, 0.0f);
  auto max_exp_avg_sq = tensors<C>(moments, random, 0.0f);
  std::vector<Row> row(kRows);
  for (int64_t r = 0; r < kRows; ++r) row[r] = {addresses(param)[r], addresses(exp_avg)[r], kNumels[r], 0, param_type};
  const Group group{0.125, 0.5, 0.75, 0.5, 1e-8, 0.125, 0.25, 1, 0, kAverage, kFirst};
  const std::vector<double> weight(terms, 1.0);
  const std::vector<int64_t> grad_types(kRows, grad_type), seconds = addresses(exp_avg_sq),
                                                           outputs = addresses(combined);
  const std::vector<int64_t> maxima = amsgrad ? addresses(max_exp_avg_sq) : std::vector<int64_t>(moments * kRows);
  std::vector<float> steps(kRows);
  std::vector<C> norm(kRows * terms), norm_avg(kRows * terms, C(NAN)), scale(kRows * terms, C(0.5));
  std::vector<double> gram(kRows * terms * terms);
  for (int step = 0; step < 3; ++step) {
    const auto grad = tensors<G>(terms, random, 0.01f);
    auto grads = addresses(grad);
    for (int64_t pair = step; pair < terms * kRows; pair += 7) grads[pair] = 0;  // absent
    const StepArgs<C> args{kRows,         terms,          moments,      is_shared,         row.data(),
                           &group,        weight.data(),  grads.data(), grad_types.data(), seconds.data(),
                           maxima.data(), outputs.data(), steps.data(), norm.data(),       norm_avg.data(),
                           scale.data(),  gram.data()};
    cpu::term_gram(args);
    if (is_shared)
      cpu::combined_adam(args);
    else
      cpu::mtadam_step(args);
    digest.add(gram.data(), gram.size() * sizeof gram[0]);
    for (const C x : scale) digest.add(&x, sizeof x);
  }
  for (const auto* list : {&param, &combined})
    for (const auto& tensor : *list) digest.add(tensor.data(), tensor.size() * sizeof(P));
  for (const auto* list : {&exp_avg, &exp_avg_sq, &max_exp_avg_sq})
    for (const auto& tensor : *list) digest.add(tensor.data(), tensor.size() * sizeof(C));
}

template <class C, class P, class G>
void run_all(const char* name, int64_t param_type, int64_t grad_type) {
  Digest digest;
  for (const int64_t terms : {1, 2, 5, 11})
    for (const bool is_shared : {false, true})
      for (const bool amsgrad : {false, true}) run<C, P, G>(param_type, grad_type, terms, is_shared, amsgrad, digest);
  std::printf("%s %016llx\n", name, static_cast<unsigned long long>(digest.value));
}

}  // namespace

int main() {
  run_all<double, double, double>("float64", kFloat64, kFloat64);
  run_all<float, float, float>("float32", kFloat32, kFloat32);
  run_all<float, BFloat16, BFloat16>("bfloat16", kBFloat16, kBFloat16);
  run_all<float, BFloat16, float>("bfloat16, gradients of float32", kBFloat16, kFloat32);
  run_all<float, Half, Half>("float16", kFloat16, kFloat16);
}
