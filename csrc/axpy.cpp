#include "axpy.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "stored.hpp"

namespace codedinv {

extern const Kernels baseline_kernels;
#ifdef CODEDINV_X86_VARIANTS
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
#endif

namespace {

template <class Word>
bool no_exponent_full(const void* x, std::size_t n, Word exponent_mask) {
  const unsigned char* bytes = static_cast<const unsigned char*>(x);
  bool full = false;  // without an early end, so that the compiler vectorises it
  for (std::size_t i = 0; i < n; ++i) {
    Word bits;
    std::memcpy(&bits, bytes + i * sizeof(Word), sizeof(Word));
    full |= (bits & exponent_mask) == exponent_mask;
  }
  return !full;
}

double element_as_double(DType dtype, const void* x, std::size_t i) {
  switch (dtype) {
    case DType::f32: return static_cast<const float*>(x)[i];
    case DType::f64: return static_cast<const double*>(x)[i];
    case DType::f16: return widen(static_cast<const Half*>(x)[i]);
    default: return widen(static_cast<const Bfloat*>(x)[i]);
  }
}

}  // namespace

std::size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return 4;
    case DType::f64: return 8;
    default: return 2;
  }
}

DType accumulator_of(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

std::size_t accumulator_size_of(DType dtype) { return size_of(accumulator_of(dtype)); }

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return "float32";
    case DType::f64: return "float64";
    case DType::f16: return "float16";
    default: return "bfloat16";
  }
}

double epsilon_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return std::ldexp(1.0, -23);
    case DType::f64: return std::ldexp(1.0, -52);
    case DType::f16: return std::ldexp(1.0, -10);
    default: return std::ldexp(1.0, -7);
  }
}

bool all_finite(DType dtype, const void* x, std::size_t n) {
  switch (dtype) {
    case DType::f32: return no_exponent_full<std::uint32_t>(x, n, 0x7f800000u);
    case DType::f64: return no_exponent_full<std::uint64_t>(x, n, 0x7ff0000000000000u);
    case DType::f16: return no_exponent_full<std::uint16_t>(x, n, 0x7c00u);
    default: return no_exponent_full<std::uint16_t>(x, n, 0x7f80u);
  }
}

double scaled_norm(DType dtype, const void* x, std::size_t n) {
  // In double the squares of all narrower types neither overflow nor vanish; those of doubles are
  // taken relative to the largest.
  double largest = 1;
  if (dtype == DType::f64) {
    largest = 0;
    for (std::size_t i = 0; i < n; ++i) {
      largest = std::max(largest, std::abs(static_cast<const double*>(x)[i]));  // passes NaN over
    }
    if (largest == 0) largest = 1;
  }
  double sum = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const double value = element_as_double(dtype, x, i) / largest;
    sum += value * value;
  }
  return largest * std::sqrt(sum);
}

const std::vector<const Kernels*>& compiled_kernels() {
  static const std::vector<const Kernels*> all = {
#ifdef CODEDINV_X86_VARIANTS
      &avx512_kernels, &avx2_kernels,
#endif
      &baseline_kernels};
  return all;
}

const Kernels& kernels_named(const std::string& name) {
  std::string known;
  for (const Kernels* kernels : compiled_kernels()) {
    if (name == kernels->name) {
      if (kernels->supported()) return *kernels;
      throw std::invalid_argument("instruction set '" + name +
                                  "' is not supported by this machine");
    }
    known += (known.empty() ? "'" : ", '") + std::string(kernels->name) + "'";
  }
  throw std::invalid_argument("instruction set: expected one of " + known + ", got '" + name + "'");
}

const Kernels& active_kernels() {
  static const Kernels& chosen = []() -> const Kernels& {
    const char* wanted = std::getenv("CODEDINV_ISA");
    if (wanted != nullptr && *wanted != '\0') return kernels_named(wanted);
    for (const Kernels* kernels : compiled_kernels()) {
      if (kernels->supported()) return *kernels;
    }
    return baseline_kernels;
  }();
  return chosen;
}

}  // namespace codedinv
