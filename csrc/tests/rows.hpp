// Random rows in every stored dtype, written independently of the library's own conversions.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "axpy.hpp"

namespace rows {

using codedinv::DType;
using Bytes = std::vector<unsigned char>;

inline const DType kAll[] = {DType::f32, DType::f64, DType::f16, DType::bf16};

inline const char* name(DType dtype) {
  switch (dtype) {
    case DType::f32: return "f32";
    case DType::f64: return "f64";
    case DType::f16: return "f16";
    default: return "bf16";
  }
}

// Relative size of a rounding step.
inline double epsilon(DType dtype) {
  switch (dtype) {
    case DType::f32: return std::ldexp(1.0, -23);
    case DType::f64: return std::ldexp(1.0, -52);
    case DType::f16: return std::ldexp(1.0, -10);
    default: return std::ldexp(1.0, -7);
  }
}

// Value of an IEEE-like number with the given exponent and fraction widths, by its definition.
inline double decode(std::uint16_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == (1 << exponent_bits) - 1) {
    return fraction != 0 ? std::nan("") : sign * HUGE_VAL;
  }
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

inline double get(DType dtype, const void* row, std::size_t i) {
  const auto* bytes = static_cast<const unsigned char*>(row) + i * codedinv::size_of(dtype);
  if (dtype == DType::f64) {
    double value;
    std::memcpy(&value, bytes, sizeof value);
    return value;
  }
  if (dtype == DType::f32) {
    float value;
    std::memcpy(&value, bytes, sizeof value);
    return static_cast<double>(value);
  }
  std::uint16_t bits;
  std::memcpy(&bits, bytes, sizeof bits);
  return dtype == DType::f16 ? decode(bits, 5, 10) : decode(bits, 8, 7);
}

// Writes the value nearest to zero's side of `value`; 16-bit types are truncated, which suits tests
// that read the row back to know what it holds.
inline void put(DType dtype, void* row, std::size_t i, double value) {
  auto* bytes = static_cast<unsigned char*>(row) + i * codedinv::size_of(dtype);
  if (dtype == DType::f64) {
    std::memcpy(bytes, &value, sizeof value);
    return;
  }
  const float narrow = static_cast<float>(value);
  if (dtype == DType::f32) {
    std::memcpy(bytes, &narrow, sizeof narrow);
    return;
  }
  std::uint32_t wide;
  std::memcpy(&wide, &narrow, sizeof wide);
  std::uint16_t bits = static_cast<std::uint16_t>(wide >> 16);
  if (dtype == DType::f16) {  // normal halves only
    const int exponent = static_cast<int>((wide >> 23) & 0xff) - 127;
    bits = static_cast<std::uint16_t>((wide >> 16) & 0x8000);
    if (exponent >= -14 && exponent <= 15) {
      bits = static_cast<std::uint16_t>(bits | (exponent + 15) << 10 | ((wide >> 13) & 0x3ff));
    }
  }
  std::memcpy(bytes, &bits, sizeof bits);
}

// `lead` unused elements come first, so that rows begin at every alignment of their type.
inline Bytes random(DType dtype, std::size_t length, std::mt19937& rng, std::size_t lead = 0) {
  std::normal_distribution<double> normal;
  Bytes row((lead + length) * codedinv::size_of(dtype));
  for (std::size_t i = 0; i < lead + length; ++i) put(dtype, row.data(), i, normal(rng));
  return row;
}

}  // namespace rows
