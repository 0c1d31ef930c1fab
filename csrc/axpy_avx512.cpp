// AVX-512 F, BW, DQ and VL: servers since Skylake-SP and Zen 4.
#include <immintrin.h>

#include "axpy_kernels.hpp"

namespace codedinv {
namespace {

struct Floats {
  using Lane = float;
  static constexpr std::size_t width = 16;
  static __m512 broadcast(float value) { return _mm512_set1_ps(value); }
  static __m512 load(const float* x) { return _mm512_loadu_ps(x); }
  static __m512 load(const Half* x) { return _mm512_cvtph_ps(load_16x16(x)); }
  static __m512 load(const Bfloat* x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load_16x16(x)), 16));
  }
  static void store(float* out, __m512 value) { _mm512_storeu_ps(out, value); }
  static __m512 multiply_add(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }

 private:
  static __m256i load_16x16(const void* x) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(x));
  }
};

struct Doubles {
  using Lane = double;
  static constexpr std::size_t width = 8;
  static __m512d broadcast(double value) { return _mm512_set1_pd(value); }
  static __m512d load(const double* x) { return _mm512_loadu_pd(x); }
  static void store(double* out, __m512d value) { _mm512_storeu_pd(out, value); }
  static __m512d multiply_add(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
};

bool supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

}  // namespace

extern const Kernels avx512_kernels;
const Kernels avx512_kernels = make_kernels<Floats, Doubles>("avx512", supported);

}  // namespace codedinv
