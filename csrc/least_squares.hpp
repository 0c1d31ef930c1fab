// Small dense least squares in double precision.
#pragma once

#include <cstddef>
#include <vector>

namespace codedinv {

// Pseudo-inverse (columns x rows, row-major) of a row-major matrix of full column rank with
// rows >= columns; its inverse where it is square. Throws std::invalid_argument if the columns are
// linearly dependent to working precision, or there are more columns than rows.
std::vector<double> pseudo_inverse(const std::vector<double>& matrix, std::size_t rows,
                                   std::size_t columns);

}  // namespace codedinv
