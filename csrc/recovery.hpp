// How missing data slots follow from accumulators: weights, and what rounding does to them.
#pragma once

#include <cstddef>
#include <vector>

#include "axpy.hpp"

namespace codedinv {

using Slots = std::vector<std::size_t>;

// Weights of recovery from the accumulators of `parities`, one row per missing slot, one column per
// parity: the pseudo-inverse of C[parities, missing]. Throws std::invalid_argument where the
// parities do not determine the slots. coefficients: r rows of k.
std::vector<double> recovery_weights(const std::vector<double>& coefficients, std::size_t k,
                                     const Slots& parities, const Slots& missing);

// Expected rounding noise of one recovered row, relative to the norm of an embedding, all
// embeddings and parities taken to be of one size: every result rounded once to `dtype`, and every
// addition to the accumulators. `weights` has one entry per parity.
double rounding_noise(const std::vector<double>& coefficients, std::size_t k, const Slots& parities,
                      const Slots& missing, const double* weights, DType dtype);

}  // namespace codedinv
