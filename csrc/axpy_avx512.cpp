// AVX-512 F, BW, DQ and VL: servers since Skylake-SP and Zen 4.
#include <immintrin.h>

#include "axpy_kernels.hpp"
#include "cpu_supports.hpp"

namespace codedinv {
namespace {

struct Floats {
  using Lane = float;
  static constexpr std::size_t width = 16;
  static constexpr bool kStreams = true;
  static __m512 broadcast(float value) { return _mm512_set1_ps(value); }
  static __m512 multiply(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
  static __m512 multiply_add(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
  static __m512 add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
  static float sum(__m512 value) { return _mm512_reduce_add_ps(value); }

  static __m512 load(const float* x) { return _mm512_loadu_ps(x); }
  static __m512 load(const Half* x) { return widened_halves(_mm256_loadu_si256(words(x))); }
  static __m512 load(const Bfloat* x) { return widened_bfloats(_mm256_loadu_si256(words(x))); }
  static __m512 load_first(const float* x, std::size_t count) {
    return _mm512_maskz_loadu_ps(first(count), x);
  }
  static __m512 load_first(const Half* x, std::size_t count) {
    return widened_halves(_mm256_maskz_loadu_epi16(first(count), x));
  }
  static __m512 load_first(const Bfloat* x, std::size_t count) {
    return widened_bfloats(_mm256_maskz_loadu_epi16(first(count), x));
  }

  static void store(float* out, __m512 value) { _mm512_storeu_ps(out, value); }
  static void store(Half* out, __m512 value) { _mm256_storeu_si256(words(out), halves(value)); }
  static void store(Bfloat* out, __m512 value) { _mm256_storeu_si256(words(out), bfloats(value)); }
  static void store_first(float* out, __m512 value, std::size_t count) {
    _mm512_mask_storeu_ps(out, first(count), value);
  }
  static void store_first(Half* out, __m512 value, std::size_t count) {
    _mm256_mask_storeu_epi16(out, first(count), halves(value));
  }
  static void store_first(Bfloat* out, __m512 value, std::size_t count) {
    _mm256_mask_storeu_epi16(out, first(count), bfloats(value));
  }
  static void stream(float* out, __m512 value) { _mm512_stream_ps(out, value); }

 private:
  static __mmask16 first(std::size_t count) { return static_cast<__mmask16>((1u << count) - 1); }
  static const __m256i* words(const void* x) { return static_cast<const __m256i*>(x); }
  static __m256i* words(void* x) { return static_cast<__m256i*>(x); }
  static __m512 widened_halves(__m256i bits) { return _mm512_cvtph_ps(bits); }
  static __m512 widened_bfloats(__m256i bits) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  static __m256i halves(__m512 value) {
    return _mm512_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static __m256i bfloats(__m512 value) {  // as narrow(float, Bfloat&)
    const __m512i bits = _mm512_castps_si512(value);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i round = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __mmask16 nan = _mm512_cmp_ps_mask(value, value, _CMP_UNORD_Q);
    const __m512i wide =
        _mm512_mask_or_epi32(_mm512_add_epi32(bits, round), nan, bits, _mm512_set1_epi32(0x400000));
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(wide, 16));
  }
};

struct Doubles {
  using Lane = double;
  static constexpr std::size_t width = 8;
  static constexpr bool kStreams = true;
  static __m512d broadcast(double value) { return _mm512_set1_pd(value); }
  static __m512d multiply(__m512d a, __m512d b) { return _mm512_mul_pd(a, b); }
  static __m512d multiply_add(__m512d a, __m512d b, __m512d c) { return _mm512_fmadd_pd(a, b, c); }
  static __m512d add(__m512d a, __m512d b) { return _mm512_add_pd(a, b); }
  static double sum(__m512d value) { return _mm512_reduce_add_pd(value); }
  static __m512d load(const double* x) { return _mm512_loadu_pd(x); }
  static __m512d load_first(const double* x, std::size_t count) {
    return _mm512_maskz_loadu_pd(first(count), x);
  }
  static void store(double* out, __m512d value) { _mm512_storeu_pd(out, value); }
  static void store_first(double* out, __m512d value, std::size_t count) {
    _mm512_mask_storeu_pd(out, first(count), value);
  }
  static void stream(double* out, __m512d value) { _mm512_stream_pd(out, value); }

 private:
  static __mmask8 first(std::size_t count) { return static_cast<__mmask8>((1u << count) - 1); }
};

bool supported() {
  return cpu_has_avx2_fma_f16c() && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl");
}

void fence() { _mm_sfence(); }

}  // namespace

extern const Kernels avx512_kernels;
const Kernels avx512_kernels = make_kernels<Floats, Doubles>("avx512", supported, fence);

}  // namespace codedinv
