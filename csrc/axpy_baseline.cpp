// Plain C++ for any machine; the compiler vectorises it for the target's base instruction set.
#include "axpy_kernels.hpp"

namespace codedinv {
namespace {

template <class T, std::size_t Width>
struct Plain {
  using Lane = T;
  static constexpr std::size_t width = Width;
  struct Vector {
    T lane[Width];
  };
  static Vector broadcast(T value) {
    Vector result;
    for (auto& lane : result.lane) lane = value;
    return result;
  }
  template <class Stored>
  static Vector load(const Stored* x) {
    Vector result;
    for (std::size_t i = 0; i < Width; ++i) result.lane[i] = widen(x[i]);
    return result;
  }
  static void store(T* out, const Vector& value) {
    for (std::size_t i = 0; i < Width; ++i) out[i] = value.lane[i];
  }
  static Vector multiply_add(const Vector& a, const Vector& b, const Vector& c) {
    Vector result;
    for (std::size_t i = 0; i < Width; ++i) result.lane[i] = a.lane[i] * b.lane[i] + c.lane[i];
    return result;
  }
};

bool always() { return true; }

}  // namespace

extern const Kernels baseline_kernels;
const Kernels baseline_kernels = make_kernels<Plain<float, 4>, Plain<double, 2>>("baseline", always);

}  // namespace codedinv
