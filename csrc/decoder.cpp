#include "decoder.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "least_squares.hpp"

namespace codedinv {
namespace {

// Elements handled at a time, so that a long row is read from memory once for all r accumulators:
// 16 KiB of fp32 input and as much accumulator stay in a 32 KiB first-level cache.
constexpr std::size_t kBlock = 4096;

std::vector<double> checked(std::vector<double> coefficients, std::size_t k, std::size_t r,
                            std::size_t length) {
  if (k == 0 || r == 0 || length == 0) {
    throw std::invalid_argument(
        "k, r and length: expected 1 or more, got k = " + std::to_string(k) +
        ", r = " + std::to_string(r) + ", length = " + std::to_string(length));
  }
  if (coefficients.size() != k * r) {
    throw std::invalid_argument("coefficients: expected " + std::to_string(k * r) + ", got " +
                                std::to_string(coefficients.size()));
  }
  return coefficients;
}

// Norm of a row of finite elements; throws if one is not finite.
double finite_norm(const Kernels& kernels, DType dtype, const void* row, std::size_t length,
                   std::size_t slot) {
  const double squares = kernels.sum_squares[static_cast<int>(dtype)](row, length);
  // Outside this range squares may have overflowed or vanished; embeddings never come near it.
  constexpr double kSmallest = 1e-24, kLargest = std::numeric_limits<double>::max();
  if (squares >= kSmallest && squares <= kLargest) return std::sqrt(squares);
  if (!all_finite(dtype, row, length)) {
    throw std::invalid_argument("embedding: expected finite values, slot " + std::to_string(slot) +
                                "'s holds a NaN or an infinity");
  }
  return scaled_norm(dtype, row, length);
}

}  // namespace

Decoder::Decoder(std::vector<double> coefficients, std::size_t k, std::size_t r, std::size_t length,
                 DType dtype, const Kernels& kernels)
    : coefficients_(checked(std::move(coefficients), k, r, length)),
      k_(k),
      r_(r),
      length_(length),
      dtype_(dtype),
      kernels_(&kernels),
      row_bytes_((length * accumulator_size_of(dtype) + kAlignment - 1) / kAlignment * kAlignment),
      accumulators_(aligned_zeros(r * row_bytes_)),
      scales_(r),
      has_(k + r) {}

Decoder::AlignedBytes Decoder::aligned_zeros(std::size_t bytes) {
  AlignedBytes memory(new (std::align_val_t(kAlignment)) unsigned char[bytes]);
  std::memset(memory.get(), 0, bytes);
  return memory;
}

unsigned char* Decoder::accumulator(std::size_t parity) const {
  return accumulators_.get() + parity * row_bytes_;
}

void Decoder::push(std::size_t slot, const void* row) {
  if (slot >= n()) {
    throw std::invalid_argument("slot: expected 0 to " + std::to_string(n() - 1) + ", got " +
                                std::to_string(slot));
  }
  const double norm = finite_norm(*kernels_, dtype_, row, length_, slot);
  const auto axpy = kernels_->axpy[static_cast<int>(dtype_)];
  const std::size_t element = size_of(dtype_), lane = accumulator_size_of(dtype_);
  const unsigned char* bytes = static_cast<const unsigned char*>(row);

  const std::lock_guard<std::mutex> lock(mutex_);
  if (has_[slot]) {
    throw std::invalid_argument("slot: " + std::to_string(slot) + " already has a result");
  }
  has_[slot] = true;
  ++count_;
  if (slot >= k_) {
    axpy(accumulator(slot - k_), 1.0, row, length_);
    scales_[slot - k_] += norm;
    return;
  }
  for (std::size_t begin = 0; begin < length_; begin += kBlock) {
    const std::size_t size = std::min(kBlock, length_ - begin);
    for (std::size_t i = 0; i < r_; ++i) {
      axpy(accumulator(i) + begin * lane, -coefficients_[i * k_ + slot], bytes + begin * element,
           size);
    }
  }
  for (std::size_t i = 0; i < r_; ++i) {
    scales_[i] += std::abs(coefficients_[i * k_ + slot]) * norm;
  }
}

bool Decoder::ready() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return count_ >= k_;
}

bool Decoder::arrived(std::size_t slot) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return has_.at(slot);
}

std::vector<std::size_t> Decoder::missing() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return missing_locked();
}

std::vector<std::size_t> Decoder::missing_locked() const {
  std::vector<std::size_t> slots;
  for (std::size_t j = 0; j < k_; ++j) {
    if (!has_[j]) slots.push_back(j);
  }
  return slots;
}

std::vector<std::size_t> Decoder::arrived_parities_locked() const {
  std::vector<std::size_t> parities;
  for (std::size_t i = 0; i < r_; ++i) {
    if (has_[k_ + i]) parities.push_back(i);
  }
  return parities;
}

std::vector<double> Decoder::recovery_weights(const std::vector<std::size_t>& parities,
                                              const std::vector<std::size_t>& missing) const {
  std::vector<double> system;
  system.reserve(parities.size() * missing.size());
  for (std::size_t i : parities) {
    for (std::size_t j : missing) system.push_back(coefficients_[i * k_ + j]);
  }
  return pseudo_inverse(system, parities.size(), missing.size());
}

Decoder::Row Decoder::combine_locked(const std::vector<std::size_t>& parities,
                                     const double* weights) const {
  // Accumulators are read as rows of their own type, so the sum stays in full precision.
  const DType wide = dtype_ == DType::f64 ? DType::f64 : DType::f32;
  const auto axpy = kernels_->axpy[static_cast<int>(wide)];
  const auto store = kernels_->store[static_cast<int>(dtype_)];
  const std::size_t element = size_of(dtype_), lane = accumulator_size_of(dtype_);
  Row out(new unsigned char[length_ * element]);
  std::vector<unsigned char> sum(std::min(kBlock, length_) * lane);
  for (std::size_t begin = 0; begin < length_; begin += kBlock) {
    const std::size_t size = std::min(kBlock, length_ - begin);
    std::fill(sum.begin(), sum.end(), static_cast<unsigned char>(0));
    for (std::size_t p = 0; p < parities.size(); ++p) {
      axpy(sum.data(), weights[p], accumulator(parities[p]) + begin * lane, size);
    }
    store(out.get() + begin * element, sum.data(), size);
  }
  return out;
}

std::vector<std::pair<std::size_t, Decoder::Row>> Decoder::recover() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (count_ < k_) {
    throw std::invalid_argument("recover: expected results of any " + std::to_string(k_) +
                                " slots, got " + std::to_string(count_));
  }
  std::vector<std::pair<std::size_t, Row>> rows;
  const auto missing = missing_locked();
  if (missing.empty()) return rows;
  const auto parities = arrived_parities_locked();
  const auto weights = recovery_weights(parities, missing);
  for (std::size_t m = 0; m < missing.size(); ++m) {
    rows.emplace_back(missing[m], combine_locked(parities, &weights[m * parities.size()]));
  }
  return rows;
}

Decoder::Row Decoder::estimate(std::size_t slot) const {
  if (slot >= k_) {
    throw std::invalid_argument("slot: expected a data slot, 0 to " + std::to_string(k_ - 1) +
                                ", got " + std::to_string(slot));
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (has_[slot]) {
    throw std::invalid_argument("slot: " + std::to_string(slot) +
                                " has its exact result, which the decoder does not keep; only a "
                                "missing slot is estimated");
  }
  auto parities = arrived_parities_locked();
  if (count_ >= k_) {
    const auto missing = missing_locked();
    const auto weights = recovery_weights(parities, missing);
    const auto row = std::find(missing.begin(), missing.end(), slot) - missing.begin();
    return combine_locked(parities, &weights[static_cast<std::size_t>(row) * parities.size()]);
  }
  if (parities.empty()) {
    for (std::size_t i = 0; i < r_; ++i) parities.push_back(i);
  }
  const auto weights = recovery_weights(parities, {slot});
  return combine_locked(parities, weights.data());
}

std::vector<double> Decoder::residual() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (count_ < n()) {
    throw std::invalid_argument("residual: expected results of all " + std::to_string(n()) +
                                " slots, got " + std::to_string(count_));
  }
  const DType wide = dtype_ == DType::f64 ? DType::f64 : DType::f32;
  std::vector<double> relative(r_);
  for (std::size_t i = 0; i < r_; ++i) {
    const double norm = scaled_norm(wide, accumulator(i), length_);
    relative[i] = scales_[i] > 0 ? norm / scales_[i] : 0.0;
  }
  return relative;
}

void Decoder::syndrome(void* out) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (count_ < n()) {
    throw std::invalid_argument("syndrome: expected results of all " + std::to_string(n()) +
                                " slots, none came for " + absent_locked());
  }
  const std::size_t bytes = length_ * accumulator_size_of(dtype_);
  for (std::size_t i = 0; i < r_; ++i) {
    std::memcpy(static_cast<unsigned char*>(out) + i * bytes, accumulator(i), bytes);
  }
}

std::string Decoder::absent_locked() const {
  std::string text;
  for (std::size_t slot = 0; slot < n(); ++slot) {
    if (!has_[slot]) text += (text.empty() ? "slot " : ", ") + std::to_string(slot);
  }
  return text;
}

void Decoder::reset() {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::memset(accumulators_.get(), 0, r_ * row_bytes_);
  std::fill(scales_.begin(), scales_.end(), 0.0);
  std::fill(has_.begin(), has_.end(), false);
  count_ = 0;
}

}  // namespace codedinv
