// Many threads on one decoder, and one decoder per thread: clean under ThreadSanitizer, and right.
#include <atomic>
#include <thread>

#include "check.hpp"
#include "decoder.hpp"
#include "rows.hpp"

using namespace codedinv;

namespace {

constexpr std::size_t kData = 16, kParities = 2, kLength = 3000;

struct Results {
  std::vector<double> coefficients;
  std::vector<std::vector<float>> rows;
};

Results results(std::mt19937& rng) {
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<double> positive(0.5, 1.5);
  Results made;
  for (std::size_t i = 0; i < kParities * kData; ++i) made.coefficients.push_back(positive(rng));
  made.rows.assign(kData + kParities, std::vector<float>(kLength, 0.0f));
  for (std::size_t e = 0; e < kLength; ++e) {
    for (std::size_t j = 0; j < kData; ++j) {
      const float value = normal(rng);
      made.rows[j][e] = value;
      for (std::size_t i = 0; i < kParities; ++i) {
        made.rows[kData + i][e] += static_cast<float>(made.coefficients[i * kData + j]) * value;
      }
    }
  }
  return made;
}

void pushes_from_many_threads_add_up(const Results& made) {
  for (int round = 0; round < 20; ++round) {
    Decoder decoder(made.coefficients, kData, kParities, kLength, DType::f32);
    std::atomic<std::size_t> next{0};
    std::atomic<int> duplicates{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        // Every slot is pushed twice, from whichever threads come first: one of the two must lose.
        for (std::size_t turn; (turn = next++) < 2 * made.rows.size();) {
          const std::size_t slot = turn % made.rows.size();
          try {
            decoder.push(slot, made.rows[slot].data());
          } catch (const std::invalid_argument&) {
            ++duplicates;
          }
          std::vector<std::vector<float>> rows(kData, std::vector<float>(kLength));
          std::vector<void*> to;
          for (auto& row : rows) to.push_back(row.data());
          // Another thread's push may come between; then nothing is written.
          if (decoder.ready()) decoder.recover(decoder.missing(), to.data());
          decoder.missing();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    CHECK_NEAR(duplicates.load(), made.rows.size(), 0.0);
    CHECK(decoder.missing().empty());
    for (double norm : decoder.residual()) CHECK(norm < 1e-5);
  }
}

void decoders_of_their_own_share_nothing(const Results& made) {
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (std::size_t lost = 0; lost < 4; ++lost) {
    threads.emplace_back([&, lost] {
      Decoder decoder(made.coefficients, kData, kParities, kLength, DType::f32);
      for (int round = 0; round < 20; ++round) {
        for (std::size_t slot = 0; slot <= kData; ++slot) {
          if (slot != lost) decoder.push(slot, made.rows[slot].data());
        }
        std::vector<float> row(kLength);
        void* to[] = {row.data()};
        wrong += !decoder.recover({lost}, to);
        wrong += !(std::abs(row[7] - made.rows[lost][7]) < 1e-3f);
        decoder.reset();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_NEAR(wrong.load(), 0, 0.0);
}

}  // namespace

int main() {
  std::mt19937 rng(7);
  const Results made = results(rng);
  pushes_from_many_threads_add_up(made);
  decoders_of_their_own_share_nothing(made);
  return check::finish("threads");
}
