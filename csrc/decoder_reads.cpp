// What is read from the accumulators: recovery, estimates, residuals and syndromes.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "decoder.hpp"

namespace codedinv {
namespace {

// Elements handled at a time: up to 2 r rows of 2 KiB stay in the first-level cache.
constexpr std::size_t kRecoveredBlock = 512;
// All rows in and out; more are written past the caches.
constexpr std::size_t kRecoveredCachedBytes = std::size_t{16} << 20;

std::string percent(double share) {
  return share < 10 ? std::to_string(std::lround(100 * share)) + " %" : "more than 1000 %";
}

[[noreturn]] void throw_overflow(DType dtype, bool unchecked) {
  throw std::invalid_argument(
      std::string("overflow: a sum of the results pushed is too large for ") + name_of(dtype) +
      (unchecked ? ", or one pushed without a check is not finite" : ""));
}

bool finite_row(const Kernels& kernels, DType dtype, const void* row, std::size_t n) {
  return std::isfinite(kernels.sum_squares[static_cast<int>(dtype)](row, n)) ||
         all_finite(dtype, row, n);
}

}  // namespace

void Decoder::refuse_noise(const Slots& parities, const Slots& missing, std::size_t slot,
                           const double* weights) const {
  const double noise = rounding_noise(coefficients_, k_, parities, missing, weights, dtype_);
  if (noise <= kLargestNoise) return;
  throw std::invalid_argument(
      std::string("recovery: rounding of ") + name_of(dtype_) + " alone would put slot " +
      std::to_string(slot) + " off by about " + percent(noise) + " of an embedding (at most " +
      percent(kLargestNoise) +
      "): results of a wider dtype or a better conditioned code are needed");
}

void Decoder::combine_locked(const Slots& parities, const double* weights, const Rows& outs) const {
  const auto combine = kernels_->combine[static_cast<int>(dtype_)];
  const std::size_t element = size_of(dtype_), lane = accumulator_size_of(dtype_);
  // Many bytes are made in a first-level block and written past the caches, which leaves the
  // accumulators there and spares reading what is overwritten.
  const bool past_caches = kernels_->copy_past_caches != nullptr &&
                           (parities.size() + outs.size()) * length_ * lane > kRecoveredCachedBytes;
  const std::size_t block_bytes = kRecoveredBlock * element;
  const AlignedBytes scratch = aligned_bytes(past_caches ? outs.size() * block_bytes : 1);
  std::vector<void*> to(outs.size());
  std::vector<const void*> from(parities.size());
  for (std::size_t begin = 0; begin < length_; begin += kRecoveredBlock) {
    const std::size_t size = std::min(kRecoveredBlock, length_ - begin);
    for (std::size_t m = 0; m < to.size(); ++m) {
      to[m] = past_caches ? scratch.get() + m * block_bytes : outs[m] + begin * element;
    }
    for (std::size_t p = 0; p < from.size(); ++p) {
      from[p] = accumulators_[parities[p]] + begin * lane;
    }
    combine(to.data(), to.size(), weights, from.data(), from.size(), size);
    for (std::size_t m = 0; m < to.size(); ++m) {
      if (!finite_row(*kernels_, dtype_, to[m], size)) throw_overflow(dtype_, unknown_norm_);
      if (!past_caches) continue;
      kernels_->copy_past_caches(outs[m] + begin * element, to[m], size * element);
    }
  }
  kernels_->fence();
}

bool Decoder::recover(const Slots& slots, void* const* rows) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (count_ < k_) {
    throw std::invalid_argument("recover: expected results of any " + std::to_string(k_) +
                                " slots, got " + std::to_string(count_));
  }
  const Slots missing = missing_locked();
  if (missing != slots) return false;
  if (missing.empty()) return true;
  const Slots parities = arrived_parities_locked();
  const auto weights = recovery_weights(coefficients_, k_, parities, missing);
  Rows outs;
  for (std::size_t m = 0; m < missing.size(); ++m) {
    refuse_noise(parities, missing, missing[m], &weights[m * parities.size()]);
    outs.push_back(static_cast<unsigned char*>(rows[m]));
  }
  combine_locked(parities, weights.data(), outs);
  return true;
}

void Decoder::estimate(std::size_t slot, void* row) const {
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
  const Rows out = {static_cast<unsigned char*>(row)};
  Slots parities = arrived_parities_locked();
  if (count_ >= k_) {
    const Slots missing = missing_locked();
    const auto weights = recovery_weights(coefficients_, k_, parities, missing);
    const auto at = std::find(missing.begin(), missing.end(), slot) - missing.begin();
    const double* own = &weights[static_cast<std::size_t>(at) * parities.size()];
    refuse_noise(parities, missing, slot, own);
    combine_locked(parities, own, out);
    return;
  }
  if (parities.empty()) {
    for (std::size_t i = 0; i < r_; ++i) parities.push_back(i);
  }
  combine_locked(parities, recovery_weights(coefficients_, k_, parities, {slot}).data(), out);
}

std::vector<double> Decoder::residual() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (count_ < n()) {
    throw std::invalid_argument("residual: expected results of all " + std::to_string(n()) +
                                " slots, got " + std::to_string(count_));
  }
  if (unknown_norm_) {
    throw std::invalid_argument(
        "residual: expected results whose norms are known, some were pushed without a check");
  }
  const DType wide = accumulator_of(dtype_);
  std::vector<double> relative(r_);
  for (std::size_t i = 0; i < r_; ++i) {
    const double size = norm(wide, accumulators_[i]);
    if (!std::isfinite(size) || !std::isfinite(scales_[i])) throw_overflow(wide, unknown_norm_);
    relative[i] = scales_[i] > 0 ? size / scales_[i] : 0.0;
  }
  return relative;
}

void Decoder::syndrome(void* out) const {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (count_ < n()) {
    throw std::invalid_argument("syndrome: expected results of all " + std::to_string(n()) +
                                " slots, none came for " + absent_locked());
  }
  const DType wide = accumulator_of(dtype_);
  const std::size_t bytes = length_ * size_of(wide);
  for (std::size_t i = 0; i < r_; ++i) {
    if (!finite_row(*kernels_, wide, accumulators_[i], length_))
      throw_overflow(wide, unknown_norm_);
    std::memcpy(static_cast<unsigned char*>(out) + i * bytes, accumulators_[i], bytes);
  }
}

}  // namespace codedinv
