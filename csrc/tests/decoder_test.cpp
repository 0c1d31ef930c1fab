#include "decoder.hpp"

#include <algorithm>
#include <numeric>

#include "check.hpp"
#include "least_squares.hpp"
#include "rows.hpp"

using namespace codedinv;

namespace {

struct Group {
  std::size_t k, r, length;
  DType dtype;
  std::vector<double> coefficients;
  std::vector<rows::Bytes> results;  // of all n slots
};

Group random_group(std::size_t k, std::size_t r, std::size_t length, DType dtype,
                   std::mt19937& rng) {
  std::normal_distribution<double> normal;
  Group group{k, r, length, dtype, {}, {}};
  for (std::size_t i = 0; i < r * k; ++i) group.coefficients.push_back(normal(rng));
  for (std::size_t j = 0; j < k; ++j) group.results.push_back(rows::random(dtype, length, rng));
  for (std::size_t i = 0; i < r; ++i) {
    rows::Bytes parity(length * size_of(dtype));
    for (std::size_t e = 0; e < length; ++e) {
      double sum = 0;
      for (std::size_t j = 0; j < k; ++j) {
        sum += group.coefficients[i * k + j] * rows::get(dtype, group.results[j].data(), e);
      }
      rows::put(dtype, parity.data(), e, sum);
    }
    group.results.push_back(parity);
  }
  return group;
}

Decoder decoder_of(const Group& group, const Kernels& kernels) {
  return Decoder(group.coefficients, group.k, group.r, group.length, group.dtype, kernels);
}

// {slot: row} of the missing data slots, as the bindings ask for them.
std::vector<std::pair<std::size_t, rows::Bytes>> recovered_by(const Decoder& decoder) {
  std::vector<std::pair<std::size_t, rows::Bytes>> result;
  const Slots missing = decoder.missing();
  for (std::size_t slot : missing) {
    result.emplace_back(slot, rows::Bytes(decoder.length() * size_of(decoder.dtype())));
  }
  std::vector<void*> to;
  for (auto& [slot, row] : result) to.push_back(row.data());
  CHECK(decoder.recover(missing, to.data()));
  return result;
}

rows::Bytes estimated_by(const Decoder& decoder, std::size_t slot) {
  rows::Bytes row(decoder.length() * size_of(decoder.dtype()));
  decoder.estimate(slot, row.data());
  return row;
}

// How much a decoder's recovery amplifies rounding, relative to an embedding.
double noise_of(const Group& group, const Decoder& decoder) {
  const Slots missing = decoder.missing();
  Slots parities;
  for (std::size_t i = 0; i < group.r; ++i) {
    if (decoder.arrived(group.k + i)) parities.push_back(i);
  }
  const auto weights = recovery_weights(group.coefficients, group.k, parities, missing);
  double largest = 0;
  for (std::size_t m = 0; m < missing.size(); ++m) {
    largest = std::max(largest, rounding_noise(group.coefficients, group.k, parities, missing,
                                               &weights[m * parities.size()], group.dtype));
  }
  return largest;
}

double distance(const Group& group, const unsigned char* row, std::size_t slot) {
  double largest = 0;
  for (std::size_t e = 0; e < group.length; ++e) {
    largest = std::max(largest, std::abs(rows::get(group.dtype, row, e) -
                                         rows::get(group.dtype, group.results[slot].data(), e)));
  }
  return largest;
}

void any_k_results_give_the_rest(const Kernels& kernels, std::mt19937& rng) {
  for (DType dtype : rows::kAll) {
    for (int trial = 0; trial < 60; ++trial) {
      const std::size_t k = 1 + rng() % 6, r = 1 + rng() % 3;
      const std::size_t length = trial < 5 ? 10000 : 1 + rng() % 300;
      const Group group = random_group(k, r, length, dtype, rng);
      Decoder decoder = decoder_of(group, kernels);
      std::vector<std::size_t> order(k + r);
      std::iota(order.begin(), order.end(), 0u);
      std::shuffle(order.begin(), order.end(), rng);
      for (std::size_t a = 0; a < k; ++a) {
        CHECK(!decoder.ready());
        decoder.push(order[a], group.results[order[a]].data());
      }
      CHECK(decoder.ready());
      const auto missing = decoder.missing();
      if (noise_of(group, decoder) > Decoder::kLargestNoise) {
        CHECK(check::refuses([&] { recovered_by(decoder); }, "rounding of"));
        continue;
      }
      const auto recovered = recovered_by(decoder);
      CHECK(recovered.size() == missing.size());
      // How much the pattern amplifies the rounding of the parities, which is all the error here.
      std::vector<double> system;
      for (std::size_t a = 0; a < k; ++a) {
        if (order[a] < k) continue;
        for (std::size_t j : missing) system.push_back(group.coefficients[(order[a] - k) * k + j]);
      }
      double amplification = 1;
      for (double weight : pseudo_inverse(system, missing.size(), missing.size())) {
        amplification += std::abs(weight);
      }
      for (std::size_t m = 0; m < missing.size(); ++m) {
        CHECK(recovered[m].first == missing[m]);
        CHECK_NEAR(distance(group, recovered[m].second.data(), missing[m]), 0.0,
                   64 * rows::epsilon(dtype) * amplification);
        CHECK(estimated_by(decoder, missing[m]) == recovered[m].second);
      }
    }
  }
}

void a_refused_push_leaves_no_trace(const Kernels& kernels, std::mt19937& rng) {
  for (DType dtype : rows::kAll) {
    const Group group = random_group(3, 2, 100, dtype, rng);
    Decoder decoder = decoder_of(group, kernels), untouched = decoder_of(group, kernels);
    for (Decoder* each : {&decoder, &untouched}) {
      each->push(0, group.results[0].data());
      each->push(3, group.results[3].data());
    }
    rows::Bytes poisoned = group.results[1];
    std::fill(poisoned.end() - static_cast<long>(size_of(dtype)), poisoned.end(),
              static_cast<unsigned char>(0xff));  // NaN in every format
    CHECK(check::refuses([&] { decoder.push(1, poisoned.data()); }, "NaN"));
    CHECK(check::refuses([&] { decoder.push(4, poisoned.data()); }, "NaN"));
    CHECK(check::refuses([&] { decoder.push(0, group.results[0].data()); }, "already has"));
    CHECK(check::refuses([&] { decoder.push(5, group.results[0].data()); }, "expected 0 to 4"));
    CHECK(check::refuses([&] { recovered_by(decoder); }, "any 3 slots, got 2"));
    CHECK(check::refuses([&] { decoder.residual(); }, "all 5 slots, got 2"));
    CHECK(check::refuses([&] { estimated_by(decoder, 0); }, "does not keep"));
    CHECK(check::refuses([&] { estimated_by(decoder, 3); }, "0 to 2"));
    CHECK(decoder.missing() == untouched.missing());
    for (std::size_t slot : {1u, 2u}) {
      CHECK(estimated_by(decoder, slot) == estimated_by(untouched, slot));
    }
  }
}

void the_residual_tells_corruption_from_rounding(const Kernels& kernels, std::mt19937& rng) {
  for (DType dtype : rows::kAll) {
    Group group = random_group(4, 2, 500, dtype, rng);
    for (const bool corrupt : {false, true}) {
      if (corrupt) group.results[1] = rows::random(dtype, 500, rng);
      Decoder decoder = decoder_of(group, kernels);
      for (std::size_t slot = 0; slot < 6; ++slot) decoder.push(slot, group.results[slot].data());
      // A parity with a small coefficient for the corrupted slot hardly sees it; the largest does.
      const auto norms = decoder.residual();
      const double largest = *std::max_element(norms.begin(), norms.end());
      CHECK(corrupt ? largest > 0.01 : largest < 2 * rows::epsilon(dtype));
    }
  }
}

void large_but_finite_values_are_no_infinities() {
  const Kernels& kernels = active_kernels();
  Decoder decoder({0.5, 0.5}, 2, 1, 64, DType::f32, kernels);
  const std::vector<float> large(64, 1e30f);  // squares overflow
  decoder.push(0, large.data());
  decoder.push(2, large.data());
  const rows::Bytes row = estimated_by(decoder, 1);
  CHECK_NEAR(rows::get(DType::f32, row.data(), 63) / 1e30, 1.0, 1e-6);
  decoder.push(1, large.data());
  CHECK_NEAR(decoder.residual()[0], 0.0, 1e-7);
}

// Above the size from which rows are written past the caches.
constexpr std::size_t kLarge = (std::size_t{1} << 20) + 4097;

// Rows of one random part over and over, so that sanitized builds need not draw millions.
Group large_group(std::size_t k, std::size_t r, std::mt19937& rng) {
  Group group = random_group(k, r, 1024, DType::f32, rng);
  group.length = kLarge;
  for (rows::Bytes& row : group.results) {
    const rows::Bytes part = row;
    row.resize(kLarge * sizeof(float));
    for (std::size_t at = 0; at < row.size(); at += part.size()) {
      std::memcpy(row.data() + at, part.data(), std::min(part.size(), row.size() - at));
    }
  }
  return group;
}

void a_large_row_that_ends_in_a_nan_leaves_no_trace(const Kernels& kernels, std::mt19937& rng) {
  const Group group = large_group(2, 2, rng);
  Decoder decoder = decoder_of(group, kernels), untouched = decoder_of(group, kernels);
  for (Decoder* each : {&decoder, &untouched}) {
    each->push(0, group.results[0].data());
    each->push(3, group.results[3].data());
  }
  rows::Bytes poisoned = group.results[1];
  rows::put(DType::f32, poisoned.data(), kLarge - 1, std::nan(""));
  CHECK(check::refuses([&] { decoder.push(1, poisoned.data()); }, "NaN"));
  CHECK(check::refuses([&] { decoder.push(2, poisoned.data()); }, "NaN"));
  CHECK(recovered_by(decoder) == recovered_by(untouched));
}

void large_rows_are_recovered_as_small_ones_are(const Kernels& kernels, std::mt19937& rng) {
  const Group group = large_group(3, 3, rng);
  constexpr std::size_t kPart = 1000, kAt = kLarge - kPart;
  Decoder large = decoder_of(group, kernels);
  Decoder small(group.coefficients, 3, 3, kPart, DType::f32, kernels);
  for (std::size_t slot : {1u, 4u, 3u}) {
    large.push(slot, group.results[slot].data());
    small.push(slot, group.results[slot].data() + 4 * kAt);
  }
  const auto wanted = recovered_by(small);
  const auto got = recovered_by(large);
  for (std::size_t m = 0; m < 2; ++m) {
    for (std::size_t i = 0; i < kPart; ++i) {
      const double want = rows::get(DType::f32, wanted[m].second.data(), i);
      CHECK_NEAR(rows::get(DType::f32, got[m].second.data(), kAt + i), want,
                 1e-4 * (1 + std::abs(want)));
    }
  }
  for (std::size_t slot : {0u, 2u, 5u}) large.push(slot, group.results[slot].data());
  for (double share : large.residual()) CHECK(share < 1e-6);
}

void sums_that_overflow_are_said_to() {
  const std::vector<float> large(64, 3e38f);
  Decoder decoder({1.0, 1.0}, 2, 1, 64, DType::f32);
  decoder.push(0, large.data());
  decoder.push(1, large.data());
  decoder.push(2, large.data());
  CHECK(check::refuses([&] { decoder.residual(); }, "overflow: "));
  std::vector<float> out(64);
  CHECK(check::refuses([&] { decoder.syndrome(out.data()); }, "overflow: "));
  decoder.reset();
  decoder.push(0, large.data());
  decoder.push(2, large.data());
  CHECK_NEAR(rows::get(DType::f32, estimated_by(decoder, 1).data(), 0), 0.0, 0.0);
  Decoder halves({0.25, 0.25}, 2, 1, 1, DType::f16);
  const std::uint16_t most = 0x7bff;  // 65504; the other must then be four times it
  const std::uint16_t zero = 0;
  halves.push(0, &zero);
  halves.push(2, &most);
  CHECK(check::refuses([&] { recovered_by(halves); }, "too large for float16"));
}

void an_unchecked_push_adds_the_same(std::mt19937& rng) {
  const Group group = random_group(2, 1, 777, DType::bf16, rng);
  Decoder checked = decoder_of(group, active_kernels()), bare = decoder_of(group, active_kernels());
  for (std::size_t slot = 0; slot < 3; ++slot) {
    checked.push(slot, group.results[slot].data());
    bare.push(slot, group.results[slot].data(), false);
  }
  std::vector<float> wanted(777), got(777);
  checked.syndrome(wanted.data());
  bare.syndrome(got.data());
  CHECK(wanted == got);
  CHECK(check::refuses([&] { bare.residual(); }, "without a check"));
  bare.reset();
  for (std::size_t slot = 0; slot < 3; ++slot) bare.push(slot, group.results[slot].data());
  CHECK(bare.residual() == checked.residual());
}

void recovery_that_rounding_would_spoil_is_refused() {
  const float row[] = {2.0f};
  Decoder single({1.0, 1.0, 1.0, 1.0 + 1e-9}, 2, 2, 1, DType::f32);
  single.push(2, row);
  single.push(3, row);
  CHECK(check::refuses([&] { recovered_by(single); }, "rounding of float32"));
  CHECK(check::refuses([&] { estimated_by(single, 0); }, "rounding of float32"));
  const double wide[] = {2.0};
  Decoder twice({1.0, 1.0, 1.0, 1.0 + 1e-9}, 2, 2, 1, DType::f64);
  twice.push(2, wide);
  twice.push(3, wide);
  CHECK(recovered_by(twice).size() == 2);
}

void other_slots_than_the_missing_are_not_written() {
  const float row[] = {1.0f};
  Decoder decoder({0.5, 0.5}, 2, 1, 1, DType::f32);
  decoder.push(0, row);
  decoder.push(2, row);
  float kept = 7.0f;
  void* to[] = {&kept};
  CHECK(!decoder.recover({0}, to));
  CHECK(!decoder.recover({}, to));
  CHECK(kept == 7.0f);
}

void reset_makes_it_new(std::mt19937& rng) {
  const Group group = random_group(2, 1, 33, DType::f32, rng);
  Decoder decoder = decoder_of(group, active_kernels());
  for (std::size_t slot = 0; slot < 3; ++slot) decoder.push(slot, group.results[slot].data());
  decoder.reset();
  CHECK(!decoder.ready());
  CHECK(decoder.missing() == (std::vector<std::size_t>{0, 1}));
  for (std::size_t slot = 0; slot < 3; ++slot) decoder.push(slot, group.results[slot].data());
  CHECK_NEAR(decoder.residual()[0], 0.0, 1e-6);
}

void nonsense_is_refused_at_construction() {
  CHECK(check::refuses([] { Decoder({}, 0, 1, 1, DType::f32); }, "k = 0"));
  for (const std::size_t length : {std::size_t{1} << 62, SIZE_MAX, SIZE_MAX / 8 + 1}) {
    CHECK(check::refuses([&] { Decoder({1.0}, 1, 1, length, DType::f32); }, "address space"));
  }
  CHECK(check::refuses([] { Decoder({1.0}, 2, 1, 1, DType::f32); }, "expected 2, got 1"));
  CHECK(check::refuses([] { Decoder({1.0}, 1, 1, 0, DType::f32); }, "length = 0"));
}

void a_singular_pattern_is_said_to_be_one() {
  Decoder decoder({1.0, 1.0, 2.0, 2.0}, 2, 2, 1, DType::f64);
  const double one = 1.0, two = 2.0;
  decoder.push(2, &one);
  decoder.push(3, &two);
  CHECK(check::refuses([&] { recovered_by(decoder); }, "singular"));
}

void pseudo_inverses_invert(std::mt19937& rng) {
  std::normal_distribution<double> normal;
  for (std::size_t columns = 1; columns <= 6; ++columns) {
    for (std::size_t rows = columns; rows <= 8; ++rows) {
      std::vector<double> a(rows * columns);
      for (double& value : a) value = normal(rng);
      const auto inverse = pseudo_inverse(a, rows, columns);
      double size = 0;
      for (double value : inverse) size += std::abs(value);
      for (std::size_t i = 0; i < columns; ++i) {
        for (std::size_t j = 0; j < columns; ++j) {
          double sum = 0;
          for (std::size_t p = 0; p < rows; ++p) sum += inverse[i * rows + p] * a[p * columns + j];
          CHECK_NEAR(sum, i == j ? 1.0 : 0.0, 1e-13 * (1 + size * size));
        }
      }
    }
  }
  CHECK(check::refuses([] { pseudo_inverse({1.0, 2.0}, 1, 2); }, "as many rows"));
}

}  // namespace

int main() {
  std::mt19937 rng(139);
  for (const Kernels* kernels : compiled_kernels()) {
    if (!kernels->supported()) continue;
    any_k_results_give_the_rest(*kernels, rng);
    a_refused_push_leaves_no_trace(*kernels, rng);
    the_residual_tells_corruption_from_rounding(*kernels, rng);
    a_large_row_that_ends_in_a_nan_leaves_no_trace(*kernels, rng);
    large_rows_are_recovered_as_small_ones_are(*kernels, rng);
  }
  sums_that_overflow_are_said_to();
  an_unchecked_push_adds_the_same(rng);
  recovery_that_rounding_would_spoil_is_refused();
  other_slots_than_the_missing_are_not_written();
  large_but_finite_values_are_no_infinities();
  reset_makes_it_new(rng);
  nonsense_is_refused_at_construction();
  a_singular_pattern_is_said_to_be_one();
  pseudo_inverses_invert(rng);
  return check::finish("decoder");
}
