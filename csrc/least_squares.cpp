#include "least_squares.hpp"

#include <cmath>
#include <stdexcept>

namespace codedinv {
namespace {

double dot(const double* a, const double* b, std::size_t n) {
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

}  // namespace

std::vector<double> pseudo_inverse(const std::vector<double>& matrix, std::size_t rows,
                                   std::size_t columns) {
  if (columns > rows || matrix.size() != rows * columns) {
    throw std::invalid_argument("pseudo_inverse: expected at least as many rows as columns");
  }
  // Gram-Schmidt, each column orthogonalised twice: twice is enough for orthogonality to working
  // precision. q holds the orthonormal columns one after another, upper the triangular factor.
  std::vector<double> q(rows * columns), upper(columns * columns);
  for (std::size_t j = 0; j < columns; ++j) {
    double* column = &q[j * rows];
    for (std::size_t i = 0; i < rows; ++i) column[i] = matrix[i * columns + j];
    const double before = std::sqrt(dot(column, column, rows));
    for (int pass = 0; pass < 2; ++pass) {
      for (std::size_t p = 0; p < j; ++p) {
        const double overlap = dot(&q[p * rows], column, rows);
        upper[p * columns + j] += overlap;
        for (std::size_t i = 0; i < rows; ++i) column[i] -= overlap * q[p * rows + i];
      }
    }
    const double left = std::sqrt(dot(column, column, rows));
    if (!(left > before * 1e-14)) {
      throw std::invalid_argument(
          "recovery: the parities that arrived do not determine the missing slots (singular "
          "pattern of the code)");
    }
    upper[j * columns + j] = left;
    for (std::size_t i = 0; i < rows; ++i) column[i] /= left;
  }
  // Back substitution of upper * result = transpose(q).
  std::vector<double> result(columns * rows);
  for (std::size_t i = 0; i < rows; ++i) {
    for (std::size_t j = columns; j-- > 0;) {
      double value = q[j * rows + i];
      for (std::size_t p = j + 1; p < columns; ++p) {
        value -= upper[j * columns + p] * result[p * rows + i];
      }
      result[j * rows + i] = value / upper[j * columns + j];
    }
  }
  return result;
}

}  // namespace codedinv
