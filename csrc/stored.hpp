// The stored 16-bit types and the conversions between stored elements and accumulator lanes.
// Internal linkage throughout: each instruction-set variant must keep its own copy.
#pragma once

#include <cstdint>

namespace codedinv {
namespace {

struct Half {
  std::uint16_t bits;
};
struct Bfloat {
  std::uint16_t bits;
};

inline float float_of_bits(std::uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}
inline std::uint32_t bits_of_float(float value) {
  std::uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline double widen(double x) { return x; }
inline float widen(float x) { return x; }
inline float widen(Bfloat x) { return float_of_bits(static_cast<std::uint32_t>(x.bits) << 16); }
// Shifted into place a half is too small by 2^112; the product restores it, subnormals included.
inline float widen(Half x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x.bits & 0x8000u) << 16;
  const std::uint32_t rest = static_cast<std::uint32_t>(x.bits & 0x7fffu) << 13;
  const float scaled = float_of_bits(rest) * float_of_bits(0x77800000u);  // * 2^112
  // Infinity and NaN carry the largest exponent of a half and must keep the largest of a float.
  const std::uint32_t special = rest >= 0x0f800000u ? 0x7f800000u : 0u;
  return float_of_bits(bits_of_float(scaled) | special | sign);
}

inline void narrow(double x, double& out) { out = x; }
inline void narrow(float x, float& out) { out = x; }
inline void narrow(float x, Bfloat& out) {
  const std::uint32_t bits = bits_of_float(x);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out.bits = static_cast<std::uint16_t>(nan ? (bits >> 16) | 0x40u : rounded);
}
inline void narrow(float x, Half& out) {
  const std::uint32_t bits = bits_of_float(x);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  std::uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    result = 0x7c00u;  // rounds to 65536 or more: infinity
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 leaves the result, rounded to nearest even, in the lowest bits.
    result = bits_of_float(float_of_bits(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    result = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  out.bits = static_cast<std::uint16_t>(sign | result);
}

}  // namespace
}  // namespace codedinv
