// The loops, written once over a vector type V and compiled once per instruction set. Included by
// the variants only. Nothing of the standard library is instantiated here: an inline function
// compiled for AVX-512 and kept by the linker would crash every older machine.
//
// V is the variant's vector of accumulators: V::width lanes of V::Lane, with
//   broadcast, multiply_add, add, sum      arithmetic; `sum` adds up the lanes
//   load, store                            of every stored type, widening to and narrowing from
//   Lane load_first, store_first                the same of the first `count` < width elements, the
//                                          other lanes zero: the tail of a row costs one vector
//   kStreams, stream, fence                stores past the caches, where there are any
#pragma once

#include <cstddef>

#include "axpy.hpp"
#include "stored.hpp"

namespace codedinv {
namespace {  // internal linkage: each variant has its own copy of every loop

template <class V>
using VectorOf = decltype(V::broadcast(typename V::Lane(0)));

// For the types that a variant has no masked access to.
template <class V, class Stored>
VectorOf<V> load_first_by_element(const Stored* x, std::size_t count) {
  Stored buffer[V::width] = {};
  for (std::size_t i = 0; i < count; ++i) buffer[i] = x[i];
  return V::load(buffer);
}
template <class V, class Stored>
void store_first_by_element(Stored* out, VectorOf<V> value, std::size_t count) {
  Stored buffer[V::width];
  V::store(buffer, value);
  for (std::size_t i = 0; i < count; ++i) out[i] = buffer[i];
}

template <class V, class Stored>
void axpy(void* acc_row, double coefficient, const void* x_row, std::size_t n) {
  using Lane = typename V::Lane;
  Lane* acc = static_cast<Lane*>(acc_row);
  const Stored* x = static_cast<const Stored*>(x_row);
  const auto c = V::broadcast(static_cast<Lane>(coefficient));
  std::size_t i = 0;
  for (; i + 4 * V::width <= n; i += 4 * V::width) {
    for (std::size_t u = 0; u < 4; ++u) {
      const std::size_t at = i + u * V::width;
      V::store(acc + at, V::multiply_add(c, V::load(x + at), V::load(acc + at)));
    }
  }
  for (; i + V::width <= n; i += V::width) {
    V::store(acc + i, V::multiply_add(c, V::load(x + i), V::load(acc + i)));
  }
  if (i < n) {
    const std::size_t left = n - i;
    V::store_first(acc + i,
                   V::multiply_add(c, V::load_first(x + i, left), V::load_first(acc + i, left)),
                   left);
  }
}

// Elements before the first vector of a row that straddles no cache line; none of a short row,
// where they would cost more than they save.
template <class V, class Stored>
std::size_t lead_of(const Stored* x, std::size_t n) {
  constexpr std::size_t kStep = V::width * sizeof(Stored);
  const std::size_t past = reinterpret_cast<std::uintptr_t>(x) % kStep;
  return past == 0 || n < 16 * V::width ? 0 : (kStep - past) / sizeof(Stored);
}

template <class V, class Stored>
double sum_squares(const void* x_row, std::size_t n) {
  const Stored* x = static_cast<const Stored*>(x_row);
  // Blocks keep fp32 partial sums short: 8 accumulators of at least 4 lanes over 4,096 elements.
  constexpr std::size_t kBlock = 4096;
  double total = 0;
  std::size_t i = lead_of<V>(x, n);
  if (i > 0) {
    const auto value = V::load_first(x, i);
    total = static_cast<double>(V::sum(V::multiply(value, value)));
  }
  while (i < n) {
    const std::size_t end = n - i < kBlock ? n : i + kBlock;
    VectorOf<V> sums[8];
    for (auto& sum : sums) sum = V::broadcast(0);
    for (; i + 8 * V::width <= end; i += 8 * V::width) {
      for (std::size_t u = 0; u < 8; ++u) {
        const auto value = V::load(x + i + u * V::width);
        sums[u] = V::multiply_add(value, value, sums[u]);
      }
    }
    for (; i + V::width <= end; i += V::width) {
      const auto value = V::load(x + i);
      sums[0] = V::multiply_add(value, value, sums[0]);
    }
    if (i < end) {
      const auto value = V::load_first(x + i, end - i);
      sums[1] = V::multiply_add(value, value, sums[1]);
      i = end;
    }
    for (std::size_t half = 4; half > 0; half /= 2) {
      for (std::size_t u = 0; u < half; ++u) sums[u] = V::add(sums[u], sums[u + half]);
    }
    total += static_cast<double>(V::sum(sums[0]));
  }
  return total;
}

template <class V, class Stored>
double axpy_past_caches(void* out_row, const void* acc_row, double coefficient, const void* x_row,
                        std::size_t n) {
  using Lane = typename V::Lane;
  Lane* out = static_cast<Lane*>(out_row);
  const Lane* acc = static_cast<const Lane*>(acc_row);
  const Stored* x = static_cast<const Stored*>(x_row);
  const auto c = V::broadcast(static_cast<Lane>(coefficient));
  VectorOf<V> sums[4];
  for (auto& sum : sums) sum = V::broadcast(0);
  std::size_t i = 0;
  for (; i + 4 * V::width <= n; i += 4 * V::width) {
    for (std::size_t u = 0; u < 4; ++u) {
      const std::size_t at = i + u * V::width;
      const auto value = V::load(x + at);
      sums[u] = V::multiply_add(value, value, sums[u]);
      V::stream(out + at, V::multiply_add(c, value, V::load(acc + at)));
    }
  }
  for (std::size_t left; i < n; i += left) {
    left = n - i < V::width ? n - i : V::width;
    const bool whole = left == V::width;
    const auto value = whole ? V::load(x + i) : V::load_first(x + i, left);
    const auto old = whole ? V::load(acc + i) : V::load_first(acc + i, left);
    sums[0] = V::multiply_add(value, value, sums[0]);
    const auto sum = V::multiply_add(c, value, old);
    whole ? V::store(out + i, sum) : V::store_first(out + i, sum, left);
  }
  return static_cast<double>(V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3]))));
}

template <class V, class Stored>
void combine(void* const* outs, std::size_t rows, const double* weights, const void* const* accs,
             std::size_t count, std::size_t n) {
  using Lane = typename V::Lane;
  const auto acc = [&](std::size_t p) { return static_cast<const Lane*>(accs[p]); };
  const auto weight = [&](std::size_t m, std::size_t p) {
    return V::broadcast(static_cast<Lane>(weights[m * count + p]));
  };
  std::size_t i = 0;
  for (; i + 4 * V::width <= n; i += 4 * V::width) {
    for (std::size_t m = 0; m < rows; ++m) {
      VectorOf<V> sums[4];
      for (std::size_t u = 0; u < 4; ++u) {
        sums[u] = V::multiply(weight(m, 0), V::load(acc(0) + i + u * V::width));
      }
      for (std::size_t p = 1; p < count; ++p) {
        const auto w = weight(m, p);
        for (std::size_t u = 0; u < 4; ++u) {
          sums[u] = V::multiply_add(w, V::load(acc(p) + i + u * V::width), sums[u]);
        }
      }
      Stored* out = static_cast<Stored*>(outs[m]) + i;
      for (std::size_t u = 0; u < 4; ++u) V::store(out + u * V::width, sums[u]);
    }
  }
  for (std::size_t left; i < n; i += left) {
    left = n - i < V::width ? n - i : V::width;
    const bool whole = left == V::width;
    for (std::size_t m = 0; m < rows; ++m) {
      auto sum = V::broadcast(0);
      for (std::size_t p = 0; p < count; ++p) {
        const auto value = whole ? V::load(acc(p) + i) : V::load_first(acc(p) + i, left);
        sum = p ? V::multiply_add(weight(m, p), value, sum) : V::multiply(weight(m, p), value);
      }
      Stored* out = static_cast<Stored*>(outs[m]) + i;
      whole ? V::store(out, sum) : V::store_first(out, sum, left);
    }
  }
}

// V's lanes serve as bytes that are moved as they are.
template <class V>
void copy_past_caches(void* out_bytes, const void* in_bytes, std::size_t bytes) {
  using Lane = typename V::Lane;
  constexpr std::size_t kStep = V::width * sizeof(Lane);
  unsigned char* out = static_cast<unsigned char*>(out_bytes);
  const unsigned char* in = static_cast<const unsigned char*>(in_bytes);
  const std::size_t past = reinterpret_cast<std::uintptr_t>(out) % kStep;
  const std::size_t lead = past == 0 ? 0 : kStep - past;
  std::size_t i = lead < bytes ? lead : bytes;
  __builtin_memcpy(out, in, i);
  for (; i + kStep <= bytes; i += kStep) {
    V::stream(reinterpret_cast<Lane*>(out + i), V::load(reinterpret_cast<const Lane*>(in + i)));
  }
  __builtin_memcpy(out + i, in + i, bytes - i);
}

template <class V>
constexpr auto copy_past_caches_or_null() {
  void (*chosen)(void*, const void*, std::size_t) = nullptr;
  if constexpr (V::kStreams) chosen = copy_past_caches<V>;
  return chosen;
}

template <class V, class Stored>
constexpr auto axpy_past_caches_or_null() {
  double (*chosen)(void*, const void*, double, const void*, std::size_t) = nullptr;
  if constexpr (V::kStreams) chosen = axpy_past_caches<V, Stored>;
  return chosen;
}

// V32 and V64 are the variant's vectors of floats and doubles. Order of the tables: enum DType.
template <class V32, class V64>
constexpr Kernels make_kernels(const char* name, bool (*supported)(), void (*fence)()) {
  return Kernels{
      name,
      supported,
      {axpy<V32, float>, axpy<V64, double>, axpy<V32, Half>, axpy<V32, Bfloat>},
      {sum_squares<V32, float>, sum_squares<V64, double>, sum_squares<V32, Half>,
       sum_squares<V32, Bfloat>},
      {axpy_past_caches_or_null<V32, float>(), axpy_past_caches_or_null<V64, double>(),
       axpy_past_caches_or_null<V32, Half>(), axpy_past_caches_or_null<V32, Bfloat>()},
      copy_past_caches_or_null<V32>(),
      fence,
      {combine<V32, float>, combine<V64, double>, combine<V32, Half>, combine<V32, Bfloat>}};
}

}  // namespace
}  // namespace codedinv
