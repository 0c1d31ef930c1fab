// Streaming decoder of an (n, k) systematic linear code over the reals; knows nothing of Python.
#pragma once

#include <cstddef>
#include <mutex>
#include <string>
#include <vector>

#include "aligned.hpp"
#include "axpy.hpp"
#include "recovery.hpp"

namespace codedinv {

// Slots 0..k-1 carry data, slots k..n-1 parities, n = k + r, with parity_i = sum_j c_ij data_j.
//
// One accumulator row per parity holds
//     a_i = [parity_i, if it arrived] - sum over arrived data slots j of c_ij data_j,
// so a push costs r axpys whatever k is, and no result is kept. A missing data slot's row is a
// linear combination of the a_i (see `recover` and `estimate`).
//
// Never an answer that rounding or overflow has made meaningless: what reads the accumulators
// throws std::invalid_argument where a finite push has overflowed them or the stored type, and
// recovery where `rounding_noise` exceeds kLargestNoise.
//
// Thread safety: every member may be called from any thread at any time; one lock per decoder makes
// each call atomic, and `ready`, `missing` and `arrived` never wait for another call's arithmetic.
// Two decoders share nothing. The row given to `push` must not change during it.
class Decoder {
 public:
  // Of an embedding. Beyond it, less than one digit would be left.
  static constexpr double kLargestNoise = 0.1;

  // coefficients: r rows of k, row-major. length: elements of one embedding.
  // Throws std::invalid_argument if a size is 0, the coefficients are not r * k, or the
  // accumulators would not fit an address space.
  Decoder(std::vector<double> coefficients, std::size_t k, std::size_t r, std::size_t length,
          DType dtype, const Kernels& kernels = active_kernels());

  // Takes the result of `slot`. Throws std::invalid_argument, with the state unchanged to the bit,
  // if the slot is not below n, has a result already, or the row holds a NaN or an infinity.
  // Without `check` the row is taken to be finite, its norm stays unknown and `residual` throws.
  void push(std::size_t slot, const void* row, bool check = true);

  bool ready() const;                    // have any k results arrived?
  Slots missing() const;                 // data slots without a result, ascending
  bool arrived(std::size_t slot) const;  // slot < n

  // Writes the rows of `slots`, which must be the missing data slots, to `rows`: the least-squares
  // solution over the arrived parities of C[arrived, missing] z = a. With as many parities as
  // missing slots this is the exact solution; with more, no choice among them has a smaller
  // worst-case error. False, with nothing written, if other slots are missing by now.
  // Throws std::invalid_argument before `ready`, and then leaves the rows undefined.
  bool recover(const Slots& slots, void* const* rows) const;

  // Best-effort estimate of a data slot without a result: the row of `recover` once `ready`, before
  // that paper eq. (6): the least-squares solution for `slot` alone, with the other missing slots
  // taken as zero. Uses the parities that arrived; before the first, all of them, taken as zero
  // too. Throws std::invalid_argument if `slot` is not below k or has a result.
  void estimate(std::size_t slot, void* row) const;

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

 private:
  using Rows = std::vector<unsigned char*>;

  double norm(DType dtype, const void* row) const;
  void refuse_duplicate_locked(std::size_t slot) const;
  void add_in_place_locked(std::size_t slot, const unsigned char* row);
  double add_past_caches_locked(std::size_t slot, const unsigned char* row);
  void arrive_locked(std::size_t slot);
  Slots missing_locked() const;
  Slots arrived_parities_locked() const;
  std::string absent_locked() const;  // "slot 0, 4"
  void refuse_noise(const Slots& parities, const Slots& missing, std::size_t slot,
                    const double* weights) const;
  // outs[m] = sum_p weights[m][p] a_p, outs.size() rows. Throws if one is not finite.
  void combine_locked(const Slots& parities, const double* weights, const Rows& outs) const;

  const std::vector<double> coefficients_;
  const std::size_t k_, r_, length_;
  const DType dtype_;
  const Kernels* const kernels_;
  const std::size_t row_bytes_;  // of one accumulator, padded so that each begins aligned
  const bool past_caches_;       // rows are too large for the caches: see add_past_caches_locked

  mutable std::mutex mutex_;  // guards all below
  const AlignedBytes memory_;
  Rows accumulators_, spares_;    // per parity; spares where past_caches_
  std::vector<double> scales_;    // per parity, the denominator of `residual`
  bool unknown_norm_ = false;     // was a row pushed unchecked?
  mutable std::mutex has_mutex_;  // guards all below too, where they change or mutex_ is not held
  std::vector<bool> has_;         // per slot
  std::size_t count_ = 0;         // of them
};

}  // namespace codedinv
