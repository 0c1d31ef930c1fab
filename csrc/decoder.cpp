#include "decoder.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <utility>

namespace codedinv {
namespace {

// Elements handled at a time, so that a long row is read from memory once for all r accumulators:
// 16 KiB of fp32 input and as much accumulator stay in a 32 KiB first-level cache.
constexpr std::size_t kBlock = 4096;
// Accumulators of more than this are written past the caches. A smaller row is still in the third
// level when it is read the second time, and so are its accumulators at the next push.
constexpr std::size_t kCachedBytes = std::size_t{4} << 20;

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
  // Two rows of doubles a parity, each padded by less than 128, in what a pointer difference can
  // hold.
  const std::size_t most = PTRDIFF_MAX / (2 * r) / sizeof(double) - 128;
  if (length > most) {
    throw std::invalid_argument("length: expected at most " + std::to_string(most) +
                                " elements, which an address space can hold, got " +
                                std::to_string(length));
  }
  return coefficients;
}

std::size_t padded(std::size_t bytes) { return (bytes + kCacheLine - 1) / kCacheLine * kCacheLine; }

// Rows that are a multiple of a page apart would compete for the same lines of the first level.
std::size_t row_pitch(std::size_t bytes) {
  constexpr std::size_t kPage = 4096, kStagger = 9 * kCacheLine;
  return padded(bytes) % kPage == 0 ? padded(bytes) + kStagger : padded(bytes);
}

[[noreturn]] void throw_not_finite(std::size_t slot) {
  throw std::invalid_argument("embedding: expected finite values, slot " + std::to_string(slot) +
                              "'s holds a NaN or an infinity");
}

// Beyond this range squares may have overflowed or vanished; embeddings never come near it.
bool trusted(double squares) {
  return squares >= 1e-24 && squares <= std::numeric_limits<double>::max();
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
      row_bytes_(row_pitch(length * accumulator_size_of(dtype))),
      past_caches_(length * accumulator_size_of(dtype) > kCachedBytes &&
                   kernels.axpy_past_caches[static_cast<int>(dtype)] != nullptr),
      memory_(aligned_bytes((past_caches_ ? 2 : 1) * r * row_bytes_)),
      scales_(r),
      has_(k + r) {
  std::memset(memory_.get(), 0, r * row_bytes_);
  for (std::size_t i = 0; i < r; ++i) {
    accumulators_.push_back(memory_.get() + i * row_bytes_);
    if (past_caches_) spares_.push_back(memory_.get() + (r + i) * row_bytes_);
  }
}

// Norm of a row; not finite where an element is not.
double Decoder::norm(DType dtype, const void* row) const {
  const double squares = kernels_->sum_squares[static_cast<int>(dtype)](row, length_);
  return trusted(squares) ? std::sqrt(squares) : scaled_norm(dtype, row, length_);
}

void Decoder::push(std::size_t slot, const void* row, bool check) {
  if (slot >= n()) {
    throw std::invalid_argument("slot: expected 0 to " + std::to_string(n() - 1) + ", got " +
                                std::to_string(slot));
  }
  const auto* bytes = static_cast<const unsigned char*>(row);
  double size = 0;
  if (check && !past_caches_) {
    size = norm(dtype_, row);
    if (!std::isfinite(size) && !all_finite(dtype_, row, length_)) throw_not_finite(slot);
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  refuse_duplicate_locked(slot);
  if (check && past_caches_) {
    size = add_past_caches_locked(slot, bytes);
  } else {
    add_in_place_locked(slot, bytes);
  }
  unknown_norm_ |= !check;
  if (slot >= k_) {
    scales_[slot - k_] += size;
  } else {
    for (std::size_t i = 0; i < r_; ++i) {
      scales_[i] += std::abs(coefficients_[i * k_ + slot]) * size;
    }
  }
  arrive_locked(slot);
}

void Decoder::refuse_duplicate_locked(std::size_t slot) const {
  if (has_[slot]) {
    throw std::invalid_argument("slot: " + std::to_string(slot) + " already has a result");
  }
}

void Decoder::add_in_place_locked(std::size_t slot, const unsigned char* row) {
  const auto axpy = kernels_->axpy[static_cast<int>(dtype_)];
  const std::size_t element = size_of(dtype_), lane = accumulator_size_of(dtype_);
  const std::size_t first = slot < k_ ? 0 : slot - k_, last = slot < k_ ? r_ : first + 1;
  for (std::size_t begin = 0; begin < length_; begin += kBlock) {
    const std::size_t size = std::min(kBlock, length_ - begin);
    for (std::size_t i = first; i < last; ++i) {
      const double c = slot < k_ ? -coefficients_[i * k_ + slot] : 1.0;
      axpy(accumulators_[i] + begin * lane, c, row + begin * element, size);
    }
  }
}

// Reads a large row from memory once, for norm and sum together. A NaN may turn up at its very end,
// and the accumulators must then be as before; so the sums go to the spare rows, which cost no more
// traffic than writing in place, and are exchanged with the accumulators when all was well.
double Decoder::add_past_caches_locked(std::size_t slot, const unsigned char* row) {
  const auto axpy = kernels_->axpy_past_caches[static_cast<int>(dtype_)];
  const std::size_t element = size_of(dtype_), lane = accumulator_size_of(dtype_);
  const std::size_t first = slot < k_ ? 0 : slot - k_, last = slot < k_ ? r_ : first + 1;
  double squares = 0;
  for (std::size_t begin = 0; begin < length_; begin += kBlock) {
    const std::size_t size = std::min(kBlock, length_ - begin);
    const unsigned char* block = row + begin * element;
    double of_block = 0;
    for (std::size_t i = first; i < last; ++i) {
      const double c = slot < k_ ? -coefficients_[i * k_ + slot] : 1.0;
      of_block = axpy(spares_[i] + begin * lane, accumulators_[i] + begin * lane, c, block, size);
    }
    if (!std::isfinite(of_block) && !all_finite(dtype_, block, size)) throw_not_finite(slot);
    squares += of_block;
  }
  kernels_->fence();
  for (std::size_t i = first; i < last; ++i) std::swap(accumulators_[i], spares_[i]);
  return trusted(squares) ? std::sqrt(squares) : scaled_norm(dtype_, row, length_);
}

void Decoder::arrive_locked(std::size_t slot) {
  const std::lock_guard<std::mutex> lock(has_mutex_);
  has_[slot] = true;
  ++count_;
}

bool Decoder::ready() const {
  const std::lock_guard<std::mutex> lock(has_mutex_);
  return count_ >= k_;
}

bool Decoder::arrived(std::size_t slot) const {
  const std::lock_guard<std::mutex> lock(has_mutex_);
  return has_.at(slot);
}

Slots Decoder::missing() const {
  const std::lock_guard<std::mutex> lock(has_mutex_);
  return missing_locked();
}

Slots Decoder::missing_locked() const {
  Slots slots;
  for (std::size_t j = 0; j < k_; ++j) {
    if (!has_[j]) slots.push_back(j);
  }
  return slots;
}

Slots Decoder::arrived_parities_locked() const {
  Slots parities;
  for (std::size_t i = 0; i < r_; ++i) {
    if (has_[k_ + i]) parities.push_back(i);
  }
  return parities;
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
  for (unsigned char* row : accumulators_) std::memset(row, 0, row_bytes_);
  std::fill(scales_.begin(), scales_.end(), 0.0);
  unknown_norm_ = false;
  const std::lock_guard<std::mutex> has_lock(has_mutex_);
  std::fill(has_.begin(), has_.end(), false);
  count_ = 0;
}

}  // namespace codedinv
