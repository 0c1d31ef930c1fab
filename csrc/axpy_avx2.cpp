// AVX2 with FMA and F16C: nearly every x86-64 server since 2013.
#include <immintrin.h>

#include "axpy_kernels.hpp"
#include "cpu_supports.hpp"

namespace codedinv {
namespace {

// All bits set in the first `count` of 8 words, or `count` / 2 of 4 double words.
inline __m256i first_words(std::size_t count) {
  const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), index);
}

struct Floats {
  using Lane = float;
  static constexpr std::size_t width = 8;
  static constexpr bool kStreams = true;
  static __m256 broadcast(float value) { return _mm256_set1_ps(value); }
  static __m256 multiply(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
  static __m256 multiply_add(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
  static __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
  static float sum(__m256 value) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(value), _mm256_extractf128_ps(value, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
  }

  static __m256 load(const float* x) { return _mm256_loadu_ps(x); }
  static __m256 load(const Half* x) { return _mm256_cvtph_ps(_mm_loadu_si128(words(x))); }
  static __m256 load(const Bfloat* x) {
    const __m256i bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(words(x)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
  }
  static __m256 load_first(const float* x, std::size_t count) {
    return _mm256_maskload_ps(x, first_words(count));
  }
  template <class Stored>
  static __m256 load_first(const Stored* x, std::size_t count) {
    return load_first_by_element<Floats>(x, count);
  }

  static void store(float* out, __m256 value) { _mm256_storeu_ps(out, value); }
  static void store(Half* out, __m256 value) {
    _mm_storeu_si128(words(out), _mm256_cvtps_ph(value, _MM_FROUND_TO_NEAREST_INT));
  }
  static void store(Bfloat* out, __m256 value) {  // as narrow(float, Bfloat&)
    const __m256i bits = _mm256_castps_si256(value);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i round = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_add_epi32(bits, round);
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(value, value, _CMP_UNORD_Q));
    const __m256i wide = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    _mm_storeu_si128(words(out), _mm_packus_epi32(_mm256_castsi256_si128(wide),
                                                  _mm256_extracti128_si256(wide, 1)));
  }
  static void store_first(float* out, __m256 value, std::size_t count) {
    _mm256_maskstore_ps(out, first_words(count), value);
  }
  template <class Stored>
  static void store_first(Stored* out, __m256 value, std::size_t count) {
    store_first_by_element<Floats>(out, value, count);
  }
  static void stream(float* out, __m256 value) { _mm256_stream_ps(out, value); }

 private:
  static const __m128i* words(const void* x) { return static_cast<const __m128i*>(x); }
  static __m128i* words(void* x) { return static_cast<__m128i*>(x); }
};

struct Doubles {
  using Lane = double;
  static constexpr std::size_t width = 4;
  static constexpr bool kStreams = true;
  static __m256d broadcast(double value) { return _mm256_set1_pd(value); }
  static __m256d multiply(__m256d a, __m256d b) { return _mm256_mul_pd(a, b); }
  static __m256d multiply_add(__m256d a, __m256d b, __m256d c) { return _mm256_fmadd_pd(a, b, c); }
  static __m256d add(__m256d a, __m256d b) { return _mm256_add_pd(a, b); }
  static double sum(__m256d value) {
    const __m128d two = _mm_add_pd(_mm256_castpd256_pd128(value), _mm256_extractf128_pd(value, 1));
    return _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)));
  }
  static __m256d load(const double* x) { return _mm256_loadu_pd(x); }
  static __m256d load_first(const double* x, std::size_t count) {
    return _mm256_maskload_pd(x, first_words(2 * count));
  }
  static void store(double* out, __m256d value) { _mm256_storeu_pd(out, value); }
  static void store_first(double* out, __m256d value, std::size_t count) {
    _mm256_maskstore_pd(out, first_words(2 * count), value);
  }
  static void stream(double* out, __m256d value) { _mm256_stream_pd(out, value); }
};

bool supported() { return cpu_has_avx2_fma_f16c(); }

void fence() { _mm_sfence(); }

}  // namespace

extern const Kernels avx2_kernels;
const Kernels avx2_kernels = make_kernels<Floats, Doubles>("avx2", supported, fence);

}  // namespace codedinv
