// The formulas of the gradient rules that have a kernel, for host and device. `mtadam_fused/rules` defines the rules.
#pragma once

#include "update_math.h"

namespace mtadam {

// The most terms that the kernels of rules take: what they keep for each pair fits in shared memory.
constexpr int64_t kMostRuleTerms = 64;

// A hash of 64-bit integers (Steele, Lea and Flood, 2014).
MTADAM_FN uint64_t splitmix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

// The n-th term that another meets, given the term before it: the one with the next larger hash of `first` plus its
// number, as signed numbers. No two hashes are equal. No array of them is kept, because it would not fit in registers.
MTADAM_FN int64_t pcgrad_next(int64_t terms, uint64_t first, int64_t n, int64_t before) {
  const auto key_of = [&](int64_t j) { return int64_t(splitmix64(first + uint64_t(j))); };
  const int64_t last = n ? key_of(before) : 0;
  int64_t next = -1, smallest = 0;
  for (int64_t j = 0; j < terms; ++j) {
    const int64_t key = key_of(j);
    if ((n == 0 || key > last) && (next < 0 || key < smallest)) {
      next = j;
      smallest = key;
    }
  }
  return next;
}

// Fills `coefficients` [terms] with those of the gradients in the projected gradient of term k.
MTADAM_FN void pcgrad_project(int64_t terms, int64_t k, int64_t seed, int64_t step, const double* gram,
                              double* coefficients) {
  const uint64_t first = splitmix64(uint64_t(step) + uint64_t(seed)) + uint64_t(k * terms);
  for (int64_t j = 0; j < terms; ++j) coefficients[j] = j == k;
  for (int64_t n = 0, other = 0; n < terms; ++n) {
    other = pcgrad_next(terms, first, n, other);
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

// Eigenvalues below this share of what they were taken from are rounding.
constexpr double kNull = 1e-12;

// Sweeps of Jacobi's method at most; five bring matrices of 8 x 8 to rounding.
constexpr int kMostSweeps = 12;

// Turns coordinates p and q of a symmetric matrix [size, size] by at most 45 degrees, so that their entry becomes zero.
// The columns of `vectors` turn along, and peaks [size] keep the largest diagonal entries so far. It is shared among
// `lanes` threads; each calls it with its number, and sync() waits for all.
template <class Sync>
MTADAM_FN void jacobi_turn(int64_t size, int64_t p, int64_t q, double* matrix, double* vectors, double* peaks,
                           int64_t lane, int64_t lanes, const Sync& sync) {
  const double entry = matrix[p * size + q], first = matrix[p * size + p], second = matrix[q * size + q];
  if (entry == 0) return;  // in all threads
  const double gap = second - first;
  const double root = std::hypot(gap, 2 * entry);
  const double tangent = 2 * entry / (gap >= 0 ? gap + root : gap - root);
  const double cosine = 1 / std::sqrt(1 + tangent * tangent), sine = tangent * cosine;
  const auto turn = [&](double& x, double& y) {
    const double old = x;
    x = cosine * old - sine * y;
    y = sine * old + cosine * y;
  };
  sync();  // all have read the entries
  for (int64_t r = lane; r < size; r += lanes) {
    turn(vectors[r * size + p], vectors[r * size + q]);
    if (r == p) {
      matrix[p * size + p] = first - tangent * entry;
      matrix[q * size + q] = second + tangent * entry;
      matrix[p * size + q] = matrix[q * size + p] = 0;
      peaks[p] = nan_max(peaks[p], matrix[p * size + p]);
      peaks[q] = nan_max(peaks[q], matrix[q * size + q]);
    } else if (r != q) {
      turn(matrix[r * size + p], matrix[r * size + q]);
      matrix[p * size + r] = matrix[r * size + p];
      matrix[q * size + r] = matrix[r * size + q];
    }
  }
  sync();
}

// Whether no entry beside the diagonal is above rounding.
MTADAM_FN bool is_diagonal(int64_t size, const double* matrix, const double* peaks) {
  for (int64_t p = 0; p < size; ++p)
    for (int64_t q = 0; q < p; ++q)
      if (!(std::fabs(matrix[p * size + q]) <= 1e-15 * std::sqrt(peaks[p]) * std::sqrt(peaks[q]))) return false;
  return true;
}

// Makes `matrix` [size, size] diagonal, by Jacobi's method. Fills `vectors` with the eigenvectors as columns, `values`
// [size], and is_null [size], which says of which eigenvalues nothing but rounding is left. Threads as of jacobi_turn.
template <class Sync>
MTADAM_FN void symmetric_eigen(int64_t size, double* matrix, double* peaks, double* values, double* vectors,
                               bool* is_null, int64_t lane, int64_t lanes, const Sync& sync) {
  for (int64_t r = lane; r < size; r += lanes) {
    for (int64_t p = 0; p < size; ++p) vectors[r * size + p] = r == p;
    peaks[r] = matrix[r * size + r];
  }
  sync();
  for (int sweep = 0; sweep < kMostSweeps && !is_diagonal(size, matrix, peaks); ++sweep)
    for (int64_t q = 1; q < size; ++q)
      for (int64_t p = 0; p < q; ++p) jacobi_turn(size, p, q, matrix, vectors, peaks, lane, lanes, sync);
  for (int64_t r = lane; r < size; r += lanes) {
    values[r] = matrix[r * size + r];
    is_null[r] = !(values[r] > kNull * peaks[r]);
  }
}

}  // namespace mtadam
