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
      const auto recovered = decoder.recover();
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
        CHECK_NEAR(distance(group, recovered[m].second.get(), missing[m]), 0.0,
                   64 * rows::epsilon(dtype) * amplification);
        const auto estimate = decoder.estimate(missing[m]);
        CHECK(std::memcmp(estimate.get(), recovered[m].second.get(), length * size_of(dtype)) == 0);
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
    CHECK(check::refuses([&] { decoder.recover(); }, "any 3 slots, got 2"));
    CHECK(check::refuses([&] { decoder.residual(); }, "all 5 slots, got 2"));
    CHECK(check::refuses([&] { decoder.estimate(0); }, "does not keep"));
    CHECK(check::refuses([&] { decoder.estimate(3); }, "0 to 2"));
    CHECK(decoder.missing() == untouched.missing());
    for (std::size_t slot : {1u, 2u}) {
      CHECK(std::memcmp(decoder.estimate(slot).get(), untouched.estimate(slot).get(),
                        100 * size_of(dtype)) == 0);
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
  const auto row = decoder.estimate(1);
  CHECK_NEAR(rows::get(DType::f32, row.get(), 63) / 1e30, 1.0, 1e-6);
  decoder.push(1, large.data());
  CHECK_NEAR(decoder.residual()[0], 0.0, 1e-7);
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
  CHECK(check::refuses([] { Decoder({1.0}, 2, 1, 1, DType::f32); }, "expected 2, got 1"));
  CHECK(check::refuses([] { Decoder({1.0}, 1, 1, 0, DType::f32); }, "length = 0"));
}

void a_singular_pattern_is_said_to_be_one() {
  Decoder decoder({1.0, 1.0, 2.0, 2.0}, 2, 2, 1, DType::f64);
  const double one = 1.0, two = 2.0;
  decoder.push(2, &one);
  decoder.push(3, &two);
  CHECK(check::refuses([&] { decoder.recover(); }, "singular"));
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
  }
  large_but_finite_values_are_no_infinities();
  reset_makes_it_new(rng);
  nonsense_is_refused_at_construction();
  a_singular_pattern_is_said_to_be_one();
  pseudo_inverses_invert(rng);
  return check::finish("decoder");
}
