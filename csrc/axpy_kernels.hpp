// The loops, written once over a vector type V and compiled once per instruction set. Included by
// the variants only. Nothing of the standard library is instantiated here: an inline function
// compiled for AVX-512 and kept by the linker would crash every older machine.
#pragma once

#include <cstddef>

#include "axpy.hpp"
#include "stored.hpp"

namespace codedinv {
namespace {  // internal linkage: each variant has its own copy of every loop

// V is the variant's vector of accumulators: V::width lanes of V::Lane, with load of every stored
// type that widens to the lane.
template <class V, class Stored>
void axpy(void* acc_row, double coefficient, const void* x_row, std::size_t n) {
  using Lane = typename V::Lane;
  Lane* acc = static_cast<Lane*>(acc_row);
  const Stored* x = static_cast<const Stored*>(x_row);
  const Lane c = static_cast<Lane>(coefficient);
  const auto cs = V::broadcast(c);
  std::size_t i = 0;
  for (; i + 4 * V::width <= n; i += 4 * V::width) {
    for (std::size_t u = 0; u < 4; ++u) {
      const std::size_t at = i + u * V::width;
      V::store(acc + at, V::multiply_add(cs, V::load(x + at), V::load(acc + at)));
    }
  }
  for (; i < n; ++i) acc[i] += c * widen(x[i]);
}

template <class V, class Stored>
double sum_squares(const void* x_row, std::size_t n) {
  using Lane = typename V::Lane;
  const Stored* x = static_cast<const Stored*>(x_row);
  // Blocks keep fp32 partial sums short: 8 accumulators of at least 4 lanes over 4,096 elements.
  constexpr std::size_t kBlock = 4096;
  double total = 0;
  std::size_t i = 0;
  while (n - i >= 8 * V::width) {
    const std::size_t end = n - i < kBlock ? n : i + kBlock;
    decltype(V::broadcast(Lane(0))) sums[8];
    for (auto& sum : sums) sum = V::broadcast(Lane(0));
    for (; i + 8 * V::width <= end; i += 8 * V::width) {
      for (std::size_t u = 0; u < 8; ++u) {
        const auto value = V::load(x + i + u * V::width);
        sums[u] = V::multiply_add(value, value, sums[u]);
      }
    }
    const auto one = V::broadcast(Lane(1));
    for (std::size_t half = 4; half > 0; half /= 2) {
      for (std::size_t u = 0; u < half; ++u) {
        sums[u] = V::multiply_add(one, sums[u], sums[u + half]);
      }
    }
    Lane lanes[V::width];
    V::store(lanes, sums[0]);
    for (Lane lane : lanes) total += static_cast<double>(lane);
  }
  for (; i < n; ++i) {
    const double value = static_cast<double>(widen(x[i]));
    total += value * value;
  }
  return total;
}

template <class V, class Stored>
void store(void* out_row, const void* acc_row, std::size_t n) {
  const auto* acc = static_cast<const typename V::Lane*>(acc_row);
  Stored* out = static_cast<Stored*>(out_row);
  for (std::size_t i = 0; i < n; ++i) narrow(acc[i], out[i]);
}

// V32 and V64 are the variant's vectors of floats and doubles. Order of the tables: enum DType.
template <class V32, class V64>
constexpr Kernels make_kernels(const char* name, bool (*supported)()) {
  return Kernels{name,
                 supported,
                 {axpy<V32, float>, axpy<V64, double>, axpy<V32, Half>, axpy<V32, Bfloat>},
                 {sum_squares<V32, float>, sum_squares<V64, double>, sum_squares<V32, Half>,
                  sum_squares<V32, Bfloat>},
                 {store<V32, float>, store<V64, double>, store<V32, Half>, store<V32, Bfloat>}};
}

}  // namespace
}  // namespace codedinv
