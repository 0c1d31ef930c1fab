// Every instruction-set variant is held to the definition of its loops, element by element.
#include "axpy.hpp"

#include <cstdlib>

#include "aligned.hpp"
#include "check.hpp"
#include "rows.hpp"

using namespace codedinv;

namespace {

constexpr std::size_t kLengths[] = {1,  2,  3,  7,   8,   15,  16,   17,
                                    63, 64, 65, 127, 128, 129, 1000, 9000};

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

void axpy_past_the_caches_is_the_same_beside(const Kernels& kernels, std::mt19937& rng) {
  for (DType dtype : rows::kAll) {
    const DType wide = accumulator_of(dtype);
    const auto axpy = kernels.axpy_past_caches[static_cast<int>(dtype)];
    if (axpy == nullptr) continue;
    for (std::size_t length : kLengths) {
      const rows::Bytes x = rows::random(dtype, length, rng, 1);
      const unsigned char* from = x.data() + size_of(dtype);
      const rows::Bytes acc = rows::random(wide, length, rng);
      const AlignedBytes out = aligned_bytes((length + 1) * size_of(wide));
      rows::put(wide, out.get(), length, 7.0);
      const double squares = axpy(out.get(), acc.data(), -0.3, from, length);
      kernels.fence();
      rows::Bytes wanted = acc;
      kernels.axpy[static_cast<int>(dtype)](wanted.data(), -0.3, from, length);
      CHECK(std::memcmp(out.get(), wanted.data(), wanted.size()) == 0);
      CHECK(rows::get(wide, out.get(), length) == 7.0);
      const double want = kernels.sum_squares[static_cast<int>(dtype)](from, length);
      CHECK_NEAR(squares, want, 1e-5 * want);
    }
  }
}

void bytes_are_copied_past_the_caches_from_and_to_any_address(const Kernels& kernels,
                                                              std::mt19937& rng) {
  if (kernels.copy_past_caches == nullptr) return;
  const rows::Bytes in = rows::random(DType::f64, 200, rng);
  for (std::size_t lead : {0u, 1u, 16u, 63u, 64u}) {
    for (std::size_t size : {0u, 1u, 15u, 64u, 127u, 1000u}) {
      rows::Bytes out(1200, 0xab), wanted = out;
      std::memcpy(wanted.data() + lead, in.data() + 3, size);
      kernels.copy_past_caches(out.data() + lead, in.data() + 3, size);
      kernels.fence();
      CHECK(out == wanted);
    }
  }
}

void combine_is_the_weighted_sum_of_all_rows(const Kernels& kernels, std::mt19937& rng) {
  const std::vector<double> weights = {0.5, -2.0, 0.25, 1.0, 3.0, -0.125};
  for (DType dtype : rows::kAll) {
    const DType wide = accumulator_of(dtype);
    for (std::size_t length : kLengths) {
      std::vector<rows::Bytes> accs, outs;
      for (int p = 0; p < 3; ++p) accs.push_back(rows::random(wide, length, rng));
      for (int m = 0; m < 2; ++m) outs.push_back(rows::random(dtype, length + 1, rng));
      const std::vector<rows::Bytes> before = outs;
      const void* from[] = {accs[0].data(), accs[1].data(), accs[2].data()};
      void* to[] = {outs[0].data(), outs[1].data()};
      kernels.combine[static_cast<int>(dtype)](to, 2, weights.data(), from, 3, length);
      for (std::size_t m = 0; m < 2; ++m) {
        for (std::size_t i = 0; i < length; ++i) {
          double want = 0, size = 0;
          for (std::size_t p = 0; p < 3; ++p) {
            const double term = weights[m * 3 + p] * rows::get(wide, accs[p].data(), i);
            want += term;
            size += std::abs(term);
          }
          CHECK_NEAR(rows::get(dtype, outs[m].data(), i), want,
                     4 * rows::epsilon(wide) * size + rows::epsilon(dtype) * std::abs(want));
        }
        CHECK(std::memcmp(outs[m].data() + length * size_of(dtype),
                          before[m].data() + length * size_of(dtype), size_of(dtype)) == 0);
      }
    }
  }
}

// Rounds accumulators to the stored dtype.
void store(const Kernels& kernels, DType dtype, void* out, const void* acc, std::size_t n) {
  const double one = 1.0;
  kernels.combine[static_cast<int>(dtype)](&out, 1, &one, &acc, 1, n);
}

void sum_squares_is_the_squared_norm(const Kernels& kernels, std::mt19937& rng) {
  for (DType dtype : rows::kAll) {
    for (std::size_t length : kLengths) {
      for (std::size_t lead : {0u, 1u, 5u, 31u}) {
        const rows::Bytes row = rows::random(dtype, length, rng, lead);
        const unsigned char* x = row.data() + lead * size_of(dtype);
        double want = 0;
        for (std::size_t i = 0; i < length; ++i) want += std::pow(rows::get(dtype, x, i), 2);
        CHECK_NEAR(kernels.sum_squares[static_cast<int>(dtype)](x, length), want, 1e-5 * want);
        CHECK_NEAR(scaled_norm(dtype, x, length), std::sqrt(want), 1e-12 * std::sqrt(want));
      }
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
    store(kernels, dtype, back.data(), wide.data(), kCount);
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
    constexpr std::size_t kCount = 20001;  // whole vectors, and a tail
    std::vector<float> values(kCount);
    for (float& value : values) value = static_cast<float>(normal(rng) * std::exp2(exponent(rng)));
    std::vector<std::uint16_t> all(kCount);
    store(kernels, dtype, all.data(), values.data(), kCount);
    for (std::size_t trial = 0; trial < kCount; ++trial) {
      const float value = values[trial];
      const std::uint16_t stored = all[trial];
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

void no_nan_or_infinity_escapes_the_norm() {
  for (DType dtype : {DType::f32, DType::f64, DType::bf16}) {
    for (const double other : {0.0, 1.0, std::nan("")}) {
      for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
        rows::Bytes x(2 * size_of(dtype));
        rows::put(dtype, x.data(), 0, other);
        rows::put(dtype, x.data(), 1, bad);
        CHECK(!std::isfinite(scaled_norm(dtype, x.data(), 2)));
        CHECK(!std::isfinite(scaled_norm(dtype, x.data() + size_of(dtype), 1)));
      }
    }
  }
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
    axpy_past_the_caches_is_the_same_beside(*kernels, rng);
    bytes_are_copied_past_the_caches_from_and_to_any_address(*kernels, rng);
    combine_is_the_weighted_sum_of_all_rows(*kernels, rng);
    sum_squares_is_the_squared_norm(*kernels, rng);
    no_nan_or_infinity_escapes_the_sum(*kernels, rng);
    sixteen_bit_conversions_follow_the_format(*kernels);
    stores_round_to_nearest_even(*kernels, rng);
  }
  huge_and_tiny_rows_have_a_norm();
  no_nan_or_infinity_escapes_the_norm();
  a_variant_is_found_by_name();
  return check::finish("axpy");
}
