// AVX2 with FMA and F16C: nearly every x86-64 server since 2013.
#include <immintrin.h>

#include "axpy_kernels.hpp"

namespace codedinv {
namespace {

struct Floats {
  using Lane = float;
  static constexpr std::size_t width = 8;
  static __m256 broadcast(float value) { return _mm256_set1_ps(value); }
  static __m256 load(const float* x) { return _mm256_loadu_ps(x); }
  static __m256 load(const Half* x) { return _mm256_cvtph_ps(load_16x8(x)); }
  static __m256 load(const Bfloat* x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load_16x8(x)), 16));
  }
  static void store(float* out, __m256 value) { _mm256_storeu_ps(out, value); }
  static __m256 multiply_add(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }

 private:
  static __m128i load_16x8(const void* x) {
    return _mm_loadu_si128(static_cast<const __m128i*>(x));
  }
};

struct Doubles {
  using Lane = double;
  static constexpr std::size_t width = 4;
  static __m256d broadcast(double value) { return _mm256_set1_pd(value); }
  static __m256d load(const double* x) { return _mm256_loadu_pd(x); }
  static void store(double* out, __m256d value) { _mm256_storeu_pd(out, value); }
  static __m256d multiply_add(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
};

bool supported() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

}  // namespace

extern const Kernels avx2_kernels;
const Kernels avx2_kernels = make_kernels<Floats, Doubles>("avx2", supported);

}  // namespace codedinv
