// The decoder's inner loops, in one variant per instruction set, chosen once at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace codedinv {

// How an embedding is stored. Accumulators are fp64 for f64 and fp32 for all others.
enum class DType { f32, f64, f16, bf16 };

std::size_t size_of(DType dtype);
std::size_t accumulator_size_of(DType dtype);

// One variant's loops over rows of n elements. Pointers need only their element's alignment; the
// input and output rows must not overlap. `double` coefficients are rounded to the accumulator.
struct Kernels {
  const char* name;
  bool (*supported)();
  // acc += c * x
  void (*axpy[4])(void* acc, double c, const void* x, std::size_t n);
  // Sum of squares of x. Non-finite if some x is, and possibly when squares overflow.
  double (*sum_squares[4])(const void* x, std::size_t n);
  // out = acc, rounded to nearest even in the stored dtype
  void (*store[4])(void* out, const void* acc, std::size_t n);
};

// True if no element is NaN or infinite. Bit tests only, so it holds where squares overflow.
bool all_finite(DType dtype, const void* x, std::size_t n);
// Euclidean norm without overflow; slow, for the rows whose squares overflow the fast sum.
double scaled_norm(DType dtype, const void* x, std::size_t n);

// Every variant compiled in, best first; the last one is the baseline and always supported.
const std::vector<const Kernels*>& compiled_kernels();
// The variant named, which must be compiled in and supported here; else std::invalid_argument.
const Kernels& kernels_named(const std::string& name);
// The best supported variant, or the one named by the environment variable CODEDINV_ISA.
const Kernels& active_kernels();

}  // namespace codedinv
