// The formulas of the gradient rules that have a kernel, for host and device. `mtadam_fused/rules` defines the rules.
#pragma once

#include "update_math.h"

// Before loops over arrays that CUDA can keep in registers only where all indices are known.
#if defined(__CUDACC__)
#define MTADAM_UNROLL _Pragma("unroll")
#else
#define MTADAM_UNROLL
#endif

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
// [size], and is_null [size], which says of which eigenvalues nothing but rounding is left. Threads as in jacobi_turn.
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

// The most vectors of which every set is tried as the support of the point of least norm: EXHAUSTIVE of supports.py.
constexpr int kMostVectors = 8;

// Unit vectors as the dot products of each two, and the inverse norms of the vectors that they come from. A vector that
// is zero counts as at a right angle to all others, and its inverse is 0.
struct UnitGram {
  double cosines[kMostVectors][kMostVectors];
  double inverse[kMostVectors];

  // Fills row r from `gram` [size, size].
  MTADAM_FN void fill_row(int64_t size, int64_t r, const double* gram) {
    const auto inverse_of = [&](int64_t j) {
      const double square = gram[j * size + j];
      return square > 0 ? 1 / std::sqrt(square) : 0.0;
    };
    inverse[r] = inverse_of(r);
    for (int64_t j = 0; j < size; ++j) {
      const double cosine = gram[r * size + j] * inverse_of(j) * inverse[r];
      cosines[r][j] = j == r ? 1 : cosine < -1 ? -1 : cosine > 1 ? 1 : cosine;
    }
  }
};

// Solves a system with a positive definite matrix, of which the lower half is read. Changes it; `x` is first the
// right-hand side, then the solution. Returns false where the matrix is not positive definite.
template <int kSize>
MTADAM_FN bool solve_positive(double (&matrix)[kSize][kSize], double (&x)[kSize]) {
  MTADAM_UNROLL
  for (int c = 0; c < kSize; ++c) {
    if (!(matrix[c][c] > 0)) return false;
    const double inverse = 1 / matrix[c][c];
    MTADAM_UNROLL
    for (int r = c + 1; r < kSize; ++r) {
      const double share = matrix[r][c] * inverse;
      x[r] -= share * x[c];
      MTADAM_UNROLL
      for (int j = c + 1; j <= r; ++j) matrix[r][j] -= share * matrix[j][c];
    }
  }
  MTADAM_UNROLL
  for (int c = kSize - 1; c >= 0; --c) {
    MTADAM_UNROLL
    for (int r = c + 1; r < kSize; ++r) x[c] -= matrix[r][c] * x[r];
    x[c] /= matrix[c][c];
  }
  return true;
}

// The square of the least norm of a support's combinations with weights of sum 1, and these weights, brought into the
// simplex. Infinite where there are none. The support is a set of vectors, as bits.
//
// The combinations are the shortest of the vectors plus multiples of the differences of the others from it. Those of
// least norm solve the system of the differences' dot products. All vectors count as unit vectors, and the sum of the
// weights as a sum of multiples of `ratio`: the system is as good whatever the vectors' norms.
MTADAM_FN double least_on_support(unsigned support, const UnitGram& unit, double (&weights)[kMostVectors]) {
  const auto is_in = [&](int k) { return (support >> k & 1) != 0; };
  double largest = 0;
  int shortest = 0;
  for (int k = 0; k < kMostVectors; ++k) {
    if (!is_in(k)) continue;
    if (!(unit.inverse[k] > 0)) return HUGE_VAL;  // a zero vector: the support without it is tried, too
    if (unit.inverse[k] > largest) largest = unit.inverse[shortest = k];
  }
  const auto is_other = [&](int k) { return is_in(k) && k != shortest; };
  const double* const cosines = unit.cosines[shortest];
  double ratio[kMostVectors], matrix[kMostVectors][kMostVectors], y[kMostVectors];
  MTADAM_UNROLL
  for (int r = 0; r < kMostVectors; ++r) {
    ratio[r] = is_other(r) ? unit.inverse[r] / largest : 0;
    y[r] = is_other(r) ? ratio[r] - cosines[r] : 0;
    MTADAM_UNROLL
    for (int j = 0; j <= r; ++j)
      matrix[r][j] = is_other(r) && is_other(j)
                         ? unit.cosines[r][j] - ratio[r] * cosines[j] - ratio[j] * cosines[r] + ratio[r] * ratio[j]
                         : r == j;
  }
  if (!solve_positive(matrix, y)) return HUGE_VAL;
  double rest = 1, sum = 0;  // what is left for the shortest, and the sum of the weights that are positive
  MTADAM_UNROLL
  for (int k = 0; k < kMostVectors; ++k) rest -= ratio[k] * y[k];
  MTADAM_UNROLL
  for (int k = 0; k < kMostVectors; ++k) {
    if (k == shortest) y[k] = rest;
    if (!(y[k] > 0 && is_finite(y[k]))) y[k] = 0;
    sum += is_in(k) ? y[k] * unit.inverse[k] : 0;
  }
  if (!(sum > 0)) return HUGE_VAL;
  MTADAM_UNROLL
  for (int k = 0; k < kMostVectors; ++k) {
    y[k] /= sum;
    weights[k] = is_in(k) ? y[k] * unit.inverse[k] : 0;
  }
  double square = 0;
  MTADAM_UNROLL
  for (int r = 0; r < kMostVectors; ++r) {
    double product = 0;
    MTADAM_UNROLL
    for (int j = 0; j < kMostVectors; ++j) product += is_in(r) && is_in(j) ? unit.cosines[r][j] * y[j] : 0;
    square += product * y[r];
  }
  return square == square ? nan_max(square, 0.0) : HUGE_VAL;
}

}  // namespace mtadam
