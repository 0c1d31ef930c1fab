// Every instruction-set variant is held to the definition of its loops, element by element.
#include "axpy.hpp"

#include <cstdlib>

#include "check.hpp"
#include "rows.hpp"

using namespace codedinv;

namespace {

constexpr std::size_t kLengths[] = {1,  2,  3,  7,   8,   15,  16,   17,
                                    63, 64, 65, 127, 128, 129, 1000, 9000};

DType accumulator_of(DType dtype) { return dtype == DType::f64 ? DType::f64 : DType::f32; }

void axpy_adds_the_scaled_row_and_nothing_else(const Kernels& kernels, std::mt19937& rng) {
  for (DType dtype : rows::kAll) {
    const DType wide = accumulator_of(dtype);
    for (std::size_t length : kLengths) {
      for (std::size_t lead : {0u, 1u, 5u}) {
        const rows::Bytes x = rows::random(dtype, length, rng, lead);
        rows::Bytes acc = rows::random(wide, length + 1, rng, lead);
        const rows::Bytes before = acc;
        const double c = -0.3;
        kernels.axpy[static_cast<int>(dtype)](acc.data() + lead * size_of(wide), c,
                                              x.data() + lead * size_of(dtype), length);
        for (std::size_t i = 0; i < lead + length + 1; ++i) {
          const double was = rows::get(wide, before.data(), i);
          const bool inside = i >= lead && i < lead + length;
          const double added = inside ? c * rows::get(dtype, x.data(), i) : 0.0;
          CHECK_NEAR(rows::get(wide, acc.data(), i), was + added,
                     inside ? 2 * rows::epsilon(wide) * (std::abs(was) + std::abs(added)) : 0.0);
        }
      }
    }
  }
}

void sum_squares_is_the_squared_norm(const Kernels& kernels, std::mt19937& rng) {
  for (DType dtype : rows::kAll) {
    for (std::size_t length : kLengths) {
      const rows::Bytes x = rows::random(dtype, length, rng);
      double want = 0;
      for (std::size_t i = 0; i < length; ++i) want += std::pow(rows::get(dtype, x.data(), i), 2);
      CHECK_NEAR(kernels.sum_squares[static_cast<int>(dtype)](x.data(), length), want, 1e-5 * want);
      CHECK_NEAR(scaled_norm(dtype, x.data(), length), std::sqrt(want), 1e-12 * std::sqrt(want));
    }
  }
}

void no_nan_or_infinity_escapes_the_sum(const Kernels& kernels, std::mt19937& rng) {
  for (DType dtype : rows::kAll) {
    for (std::size_t length : {1u, 64u, 65u, 1000u}) {
      for (std::size_t at : {std::size_t{0}, length / 2, length - std::size_t{1}}) {
        for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
          rows::Bytes x = rows::random(dtype, length, rng);
          CHECK(all_finite(dtype, x.data(), length));
          if (dtype == DType::f16) {
            const std::uint16_t bits = bad != bad ? 0x7e01 : bad > 0 ? 0x7c00 : 0xfc00;
            std::memcpy(x.data() + 2 * at, &bits, 2);
          } else {
            rows::put(dtype, x.data(), at, bad);
          }
          CHECK(!std::isfinite(kernels.sum_squares[static_cast<int>(dtype)](x.data(), length)));
          CHECK(!all_finite(dtype, x.data(), length));
        }
      }
    }
  }
}

// All 65,536 patterns of the 16-bit types, in and out.
void sixteen_bit_conversions_follow_the_format(const Kernels& kernels) {
  constexpr std::size_t kCount = 65536;
  std::vector<std::uint16_t> all(kCount), back(kCount);
  for (std::size_t i = 0; i < kCount; ++i) all[i] = static_cast<std::uint16_t>(i);
  for (DType dtype : {DType::f16, DType::bf16}) {
    std::vector<float> wide(kCount, 0.0f);
    kernels.axpy[static_cast<int>(dtype)](wide.data(), 1.0, all.data(), kCount);
    kernels.store[static_cast<int>(dtype)](back.data(), wide.data(), kCount);
    int wrong = 0;
    for (std::size_t i = 0; i < kCount; ++i) {
      const double want = rows::get(dtype, all.data(), i);
      const double got = static_cast<double>(wide[i]), again = rows::get(dtype, back.data(), i);
      if (want != want) {
        wrong += !(got != got && again != again);
      } else {
        // A subnormal bfloat16 is a subnormal float; times 1 plus 0 it must still come through.
        wrong += !(got == want && again == want);
      }
    }
    CHECK_NEAR(wrong, 0, 0.0);
  }
}

void stores_round_to_nearest_even(const Kernels& kernels, std::mt19937& rng) {
  std::uniform_real_distribution<double> exponent(-30.0, 17.0);
  std::normal_distribution<double> normal;
  for (DType dtype : {DType::f16, DType::bf16}) {
    const int exponent_bits = dtype == DType::f16 ? 5 : 8, fraction = dtype == DType::f16 ? 10 : 7;
    for (int trial = 0; trial < 20000; ++trial) {
      const float value = static_cast<float>(normal(rng) * std::exp2(exponent(rng)));
      std::uint16_t stored;
      kernels.store[static_cast<int>(dtype)](&stored, &value, 1);
      const double got = rows::decode(stored, exponent_bits, fraction);
      if (std::isinf(got)) {
        CHECK(dtype == DType::f16 && std::abs(value) >= 65520.0f);
        continue;
      }
      const double error = std::abs(got - static_cast<double>(value));
      for (int step : {-1, 1}) {
        const std::uint16_t neighbour = static_cast<std::uint16_t>(stored + step);
        if ((neighbour ^ stored) & 0x8000) continue;
        double other = rows::decode(neighbour, exponent_bits, fraction);
        if (std::isinf(other)) other = std::copysign(65536.0, other);
        const double other_error = std::abs(other - static_cast<double>(value));
        CHECK(error < other_error || (error == other_error && (stored & 1) == 0));
      }
    }
  }
}

void huge_and_tiny_rows_have_a_norm() {
  const float floats[] = {3e38f, -3e38f};
  CHECK_NEAR(scaled_norm(DType::f32, floats, 2) / 3e38, std::sqrt(2.0), 1e-6);
  const double doubles[] = {1e300, 1e300};
  CHECK_NEAR(scaled_norm(DType::f64, doubles, 2) / 1e300, std::sqrt(2.0), 1e-12);
  const double tiny[] = {3e-200, 4e-200};
  CHECK_NEAR(scaled_norm(DType::f64, tiny, 2) / 1e-200, 5.0, 1e-12);
  const double zeros[] = {0.0, 0.0};
  CHECK(scaled_norm(DType::f64, zeros, 2) == 0.0);
}

void a_variant_is_found_by_name() {
  CHECK(std::string(kernels_named("baseline").name) == "baseline");
  CHECK(check::refuses([] { kernels_named("mmx"); }, "got 'mmx'"));
  CHECK(std::string(compiled_kernels().back()->name) == "baseline");
}

}  // namespace

int main() {
  std::mt19937 rng(20210718);
  for (const Kernels* kernels : compiled_kernels()) {
    if (!kernels->supported()) {
      std::printf("%s: not supported by this machine\n", kernels->name);
      continue;
    }
    std::printf("%s\n", kernels->name);
    axpy_adds_the_scaled_row_and_nothing_else(*kernels, rng);
    sum_squares_is_the_squared_norm(*kernels, rng);
    no_nan_or_infinity_escapes_the_sum(*kernels, rng);
    sixteen_bit_conversions_follow_the_format(*kernels);
    stores_round_to_nearest_even(*kernels, rng);
  }
  huge_and_tiny_rows_have_a_norm();
  a_variant_is_found_by_name();
  return check::finish("axpy");
}
