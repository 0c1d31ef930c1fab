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
DType accumulator_of(DType dtype);
const char* name_of(DType dtype);  // such as "float32"
double epsilon_of(DType dtype);    // distance from 1 to the next larger number

// One variant's loops over rows of n elements. Pointers need only their element's alignment; the
// input and output rows must not overlap. `double` coefficients are rounded to the accumulator.
struct Kernels {
  const char* name;
  bool (*supported)();
  // acc += c * x
  void (*axpy[4])(void* acc, double c, const void* x, std::size_t n);
  // Sum of squares of x. Non-finite if some x is, and possibly when squares overflow.
  double (*sum_squares[4])(const void* x, std::size_t n);
  // out = acc + c * x, out aligned to 64 bytes; returns the sum of squares of x, as above. Writes
  // past the caches, so memory is read twice and written once an element; null where the
  // instruction set cannot. `fence` must follow before another thread may read `out`.
  double (*axpy_past_caches[4])(void* out, const void* acc, double c, const void* x, std::size_t n);
  // Copies bytes past the caches; null and to be followed by `fence` as above.
  void (*copy_past_caches)(void* out, const void* in, std::size_t bytes);
  void (*fence)();
  // outs[m] = sum over p of weights[m * count + p] * accs[p], for `rows` rows of the stored dtype,
  // rounded to nearest even, from `count` >= 1 rows of accumulators.
  void (*combine[4])(void* const* outs, std::size_t rows, const double* weights,
                     const void* const* accs, std::size_t count, std::size_t n);
};

// True if no element is NaN or infinite. Bit tests only, so it holds where squares overflow.
bool all_finite(DType dtype, const void* x, std::size_t n);
// Euclidean norm without overflow, not finite where an element is not; slow, for the rows whose
// squares overflow the fast sum.
double scaled_norm(DType dtype, const void* x, std::size_t n);

// Every variant compiled in, best first; the last one is the baseline and always supported.
const std::vector<const Kernels*>& compiled_kernels();
// The variant named, which must be compiled in and supported here; else std::invalid_argument.
const Kernels& kernels_named(const std::string& name);
// The best supported variant, or the one named by the environment variable CODEDINV_ISA.
const Kernels& active_kernels();

}  // namespace codedinv
