// The formulas of the gradient rules that have a kernel, for host and device. `mtadam_fused/rules` defines the rules.
#pragma once

#include "update_math.h"

namespace mtadam {

// The most terms that the kernels of rules take: what they keep for each fits on a stack and in shared memory.
constexpr int64_t kMostRuleTerms = 64;

// A hash of 64-bit integers (Steele, Lea and Flood, 2014).
MTADAM_FN uint64_t splitmix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

// Fills `order` [terms] with the order in which term k meets the terms at a step: by hashes, as signed numbers.
MTADAM_FN void pcgrad_order(int64_t terms, int64_t k, int64_t seed, int64_t step, int64_t* order) {
  const uint64_t first = splitmix64(uint64_t(step) + uint64_t(seed)) + uint64_t(k * terms);
  int64_t keys[kMostRuleTerms];  // sorted, as `order` is
  for (int64_t j = 0; j < terms; ++j) {
    const auto key = int64_t(splitmix64(first + uint64_t(j)));
    int64_t place = j;
    for (; place > 0 && keys[place - 1] > key; --place) {
      keys[place] = keys[place - 1];
      order[place] = order[place - 1];
    }
    keys[place] = key;
    order[place] = j;
  }
}

// Fills `coefficients` [terms] with those of the gradients in the projected gradient of term k.
MTADAM_FN void pcgrad_project(int64_t terms, int64_t k, const int64_t* order, const double* gram,
                              double* coefficients) {
  for (int64_t j = 0; j < terms; ++j) coefficients[j] = j == k;
  for (int64_t n = 0; n < terms; ++n) {
    const int64_t other = order[n];
    const double square = gram[other * terms + other];
    double dot = 0;
    for (int64_t j = 0; j < terms; ++j) dot += coefficients[j] * gram[j * terms + other];
    if (other != k && square > 0 && dot < 0) coefficients[other] -= dot / square;
  }
}

// The weight of term k: over all projected gradients, the sum or the mean of its coefficients times the preference.
MTADAM_FN double pcgrad_weight(int64_t terms, int64_t k, const double* coefficients, const double* preference,
                               bool mean, const double* gram) {
  double sum = 0;
  int64_t present = 0;
  for (int64_t j = 0; j < terms; ++j) {
    sum += (preference ? preference[j] : 1.0) * coefficients[j * terms + k];
    present += gram[j * terms + j] > 0;
  }
  return mean && present ? sum / double(present) : sum;
}

}  // namespace mtadam
