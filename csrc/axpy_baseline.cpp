// Plain C++ for any machine; the compiler vectorises it for the target's base instruction set.
#include "axpy_kernels.hpp"

namespace codedinv {
namespace {

// The compilers' 16-byte vectors: SSE2 on x86-64, NEON on aarch64, plain scalars elsewhere.
template <class T>
struct Plain {
  using Lane = T;
  using Vector __attribute__((vector_size(16))) = T;
  static constexpr std::size_t width = 16 / sizeof(T);
  static constexpr bool kStreams = false;
  static Vector broadcast(T value) { return Vector{} + value; }
  static Vector load(const T* x) {
    Vector result;
    __builtin_memcpy(&result, x, sizeof result);
    return result;
  }
  static void store(T* out, Vector value) { __builtin_memcpy(out, &value, sizeof value); }
  static Vector multiply(Vector a, Vector b) { return a * b; }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
  static Vector add(Vector a, Vector b) { return a + b; }
  static T sum(Vector value) {
    T total = 0;
    for (std::size_t lane = 0; lane < width; ++lane) total += value[lane];
    return total;
  }
};

struct Doubles : Plain<double> {
  static Vector load_first(const double* x, std::size_t count) {
    return load_first_by_element<Doubles>(x, count);
  }
  static void store_first(double* out, Vector value, std::size_t count) {
    store_first_by_element<Doubles>(out, value, count);
  }
};

struct Floats : Plain<float> {
  using Plain<float>::load;
  using Plain<float>::store;
  template <class Stored>  // the 16-bit types
  static void store(Stored* out, Vector value) {
    for (std::size_t lane = 0; lane < width; ++lane) narrow(value[lane], out[lane]);
  }
  template <class Stored>
  static Vector load_first(const Stored* x, std::size_t count) {
    return load_first_by_element<Floats>(x, count);
  }
  template <class Stored>
  static void store_first(Stored* out, Vector value, std::size_t count) {
    store_first_by_element<Floats>(out, value, count);
  }
  static Vector load(const Bfloat* x) { return reinterpret(load_bits(x) << 16); }
  static Vector load(const Half* x) {  // as widen(Half), four at a time
    const Bits bits = load_bits(x);
    const Bits rest = (bits & 0x7fffu) << 13;
    const Vector scaled = reinterpret(rest) * float_of_bits(0x77800000u);
    const Bits special = reinterpret_bits(rest >= 0x0f800000u) & 0x7f800000u;
    return reinterpret(reinterpret_bits(scaled) | special | (bits & 0x8000u) << 16);
  }

 private:
  using Bits __attribute__((vector_size(16))) = std::uint32_t;
  using Shorts __attribute__((vector_size(8))) = std::uint16_t;
  static Bits load_bits(const void* x) {
    Shorts shorts;
    __builtin_memcpy(&shorts, x, sizeof shorts);
    return __builtin_convertvector(shorts, Bits);
  }
  static Vector reinterpret(Bits bits) { return reinterpret_cast<Vector>(bits); }
  template <class V>
  static Bits reinterpret_bits(V vector) {
    return reinterpret_cast<Bits>(vector);
  }
};

bool always() { return true; }
void no_fence() {}

}  // namespace

extern const Kernels baseline_kernels;
const Kernels baseline_kernels = make_kernels<Floats, Doubles>("baseline", always, no_fence);

}  // namespace codedinv
