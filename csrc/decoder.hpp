// Streaming decoder of an (n, k) systematic linear code over the reals; knows nothing of Python.
#pragma once

#include <cstddef>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "axpy.hpp"

namespace codedinv {

// Slots 0..k-1 carry data, slots k..n-1 parities, n = k + r, with parity_i = sum_j c_ij data_j.
//
// One accumulator row per parity holds
//     a_i = [parity_i, if it arrived] - sum over arrived data slots j of c_ij data_j,
// so a push costs r axpys whatever k is, and no result is kept. A missing data slot's row is a
// linear combination of the a_i (see `recover` and `estimate`).
//
// Thread safety: every member may be called from any thread at any time; one lock per decoder makes
// each call atomic. Two decoders share nothing. The row given to `push` must not change during it.
class Decoder {
 public:
  // Vectors that straddle cache lines make an axpy of 3,072 fp32 1.5 times as slow.
  static constexpr std::size_t kAlignment = 64;
  using Row = std::unique_ptr<unsigned char[]>;  // `length` elements of the stored dtype

  // coefficients: r rows of k, row-major. length: elements of one embedding.
  // Throws std::invalid_argument if a size is 0 or the coefficients are not r * k.
  Decoder(std::vector<double> coefficients, std::size_t k, std::size_t r, std::size_t length,
          DType dtype, const Kernels& kernels = active_kernels());

  // Takes the result of `slot`. Throws std::invalid_argument, with the state unchanged, if the slot
  // is not below n, has a result already, or the row holds a NaN or an infinity.
  void push(std::size_t slot, const void* row);

  bool ready() const;                        // have any k results arrived?
  std::vector<std::size_t> missing() const;  // data slots without a result, ascending
  bool arrived(std::size_t slot) const;      // slot < n

  // All missing data slots, as the least-squares solution over the arrived parities of
  // C[arrived, missing] z = a. With as many parities as missing slots this is the exact solution;
  // with more, no choice among them has a smaller worst-case error.
  // Throws std::invalid_argument before `ready`.
  std::vector<std::pair<std::size_t, Row>> recover() const;

  // Best-effort estimate of a data slot without a result: the row of `recover` once `ready`, before
  // that paper eq. (6): the least-squares solution for `slot` alone, with the other missing slots
  // taken as zero. Uses the parities that arrived; before the first, all of them, taken as zero
  // too. Throws std::invalid_argument if `slot` is not below k or has a result.
  Row estimate(std::size_t slot) const;

  // |a_i| / (|parity_i| + sum_j |c_ij| |data_j|) for each parity: rounding noise for consistent
  // results, of the order of the error's share where one is corrupted.
  // Throws std::invalid_argument until all n results have arrived.
  std::vector<double> residual() const;

  // The syndrome parity_i - sum_j c_ij data_j of every parity: r rows of `length` accumulator
  // elements (fp64 for f64, fp32 for all others), written to `out` one after another.
  // Throws std::invalid_argument, naming the absent slots, until all n results have arrived.
  void syndrome(void* out) const;

  void reset();  // as newly made

  std::size_t k() const { return k_; }
  std::size_t r() const { return r_; }
  std::size_t n() const { return k_ + r_; }
  std::size_t length() const { return length_; }
  DType dtype() const { return dtype_; }
  const Kernels& kernels() const { return *kernels_; }

 private:
  struct AlignedDelete {
    void operator()(unsigned char* bytes) const {
      ::operator delete[](bytes, std::align_val_t(kAlignment));
    }
  };
  using AlignedBytes = std::unique_ptr<unsigned char[], AlignedDelete>;
  static AlignedBytes aligned_zeros(std::size_t bytes);

  unsigned char* accumulator(std::size_t parity) const;
  std::vector<std::size_t> missing_locked() const;
  std::vector<std::size_t> arrived_parities_locked() const;
  std::string absent_locked() const;  // "slot 0, 4"
  Row combine_locked(const std::vector<std::size_t>& parities, const double* weights) const;
  // Weights of recovery: one row per missing slot, one column per arrived parity.
  std::vector<double> recovery_weights(const std::vector<std::size_t>& parities,
                                       const std::vector<std::size_t>& missing) const;

  const std::vector<double> coefficients_;
  const std::size_t k_, r_, length_;
  const DType dtype_;
  const Kernels* const kernels_;
  const std::size_t row_bytes_;  // of one accumulator, padded so that each begins aligned

  mutable std::mutex mutex_;  // guards all below
  const AlignedBytes accumulators_;
  std::vector<double> scales_;  // per parity, the denominator of `residual`
  std::vector<bool> has_;       // per slot
  std::size_t count_ = 0;
};

}  // namespace codedinv
