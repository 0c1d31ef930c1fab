#include "recovery.hpp"

#include <algorithm>
#include <cmath>

#include "least_squares.hpp"

namespace codedinv {

std::vector<double> recovery_weights(const std::vector<double>& coefficients, std::size_t k,
                                     const Slots& parities, const Slots& missing) {
  std::vector<double> system;
  system.reserve(parities.size() * missing.size());
  for (std::size_t i : parities) {
    for (std::size_t j : missing) system.push_back(coefficients[i * k + j]);
  }
  return pseudo_inverse(system, parities.size(), missing.size());
}

double rounding_noise(const std::vector<double>& coefficients, std::size_t k, const Slots& parities,
                      const Slots& missing, const double* weights, DType dtype) {
  double of_parities = 0, of_data = 0;
  for (std::size_t p = 0; p < parities.size(); ++p) of_parities += weights[p] * weights[p];
  for (std::size_t j = 0; j < k; ++j) {
    if (std::find(missing.begin(), missing.end(), j) != missing.end()) continue;
    double gain = 0;  // of a data slot's rounding, which all parities share
    for (std::size_t p = 0; p < parities.size(); ++p) {
      gain += weights[p] * coefficients[parities[p] * k + j];
    }
    of_data += gain * gain;
  }
  // A rounding is uniform within half a step either way.
  const double stored = epsilon_of(dtype) / std::sqrt(12.0);
  const double added = epsilon_of(accumulator_of(dtype)) / std::sqrt(12.0);
  const double additions = static_cast<double>(k - missing.size() + 1);
  return std::sqrt(stored * stored * (of_parities + of_data) +
                   added * added * additions * of_parities);
}

}  // namespace codedinv
