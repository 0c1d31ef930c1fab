// Calls at random, good and bad: each ends in the answer, or the refusal, of a decoder that was
// made anew and saw only the pushes that were accepted. `fuzz_test [SECONDS [SEED]]`.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <string>

#include "check.hpp"
#include "decoder.hpp"
#include "rows.hpp"

using namespace codedinv;

namespace {

// A row that ends where its allocation ends, beginning at any address that its type may have, so
// that the address sanitizer sees one byte too many.
struct Row {
  Row(const rows::Bytes& values, std::size_t lead)
      : memory(new unsigned char[lead + values.size()]), data(memory.get() + lead) {
    std::memcpy(data, values.data(), values.size());
  }
  std::unique_ptr<unsigned char[]> memory;
  unsigned char* data;
};

struct Push {
  std::size_t slot;
  Row row;  // kept where it lay: the rounding of a norm depends on the alignment
  bool check;
};

struct Setting {
  const Kernels* kernels;
  std::vector<double> coefficients;
  std::size_t k, r, length;
  DType dtype;

  Decoder decoder() const { return Decoder(coefficients, k, r, length, dtype, *kernels); }
};

std::size_t below(std::size_t end, std::mt19937& rng) { return rng() % end; }

// Mostly short; now and then longer than a block, and rarely of more than the caches' share.
std::size_t random_length(std::mt19937& rng) {
  if (below(150, rng) == 0) return (std::size_t{1} << 20) + 1 + below(5000, rng);
  if (below(10, rng) == 0) return 4090 + below(8200, rng);
  return 1 + below(below(4, rng) == 0 ? 3 : 140, rng);
}

Setting random_setting(std::mt19937& rng) {
  std::vector<const Kernels*> usable;
  for (const Kernels* kernels : compiled_kernels()) {
    if (kernels->supported()) usable.push_back(kernels);
  }
  Setting setting{usable[below(usable.size(), rng)],
                  {},
                  1 + below(4, rng),
                  1 + below(3, rng),
                  random_length(rng),
                  rows::kAll[below(4, rng)]};
  std::normal_distribution<double> normal;
  for (std::size_t i = 0; i < setting.k * setting.r; ++i) {
    setting.coefficients.push_back(below(10, rng) == 0 ? 0.0 : normal(rng));
  }
  return setting;
}

// One random part over and over: sanitized builds need not draw millions.
rows::Bytes random_values(DType dtype, std::size_t length, std::mt19937& rng) {
  const rows::Bytes part = rows::random(dtype, std::min<std::size_t>(length, 1009), rng);
  rows::Bytes values(length * size_of(dtype));
  for (std::size_t at = 0; at < values.size(); at += part.size()) {
    std::memcpy(values.data() + at, part.data(), std::min(part.size(), values.size() - at));
  }
  return values;
}

void poison(DType dtype, rows::Bytes& values, std::size_t at, std::mt19937& rng) {
  const double infinity = std::numeric_limits<double>::infinity();
  if (dtype == DType::f16) {
    const std::uint16_t patterns[] = {0x7c00, 0xfc00, 0x7c01, 0xffff};
    std::memcpy(values.data() + 2 * at, &patterns[below(4, rng)], 2);
  } else {
    const double patterns[] = {infinity, -infinity, std::nan("")};
    rows::put(dtype, values.data(), at, patterns[below(3, rng)]);
  }
}

// What a call gave: bytes, or the message of its refusal.
template <class Call>
rows::Bytes outcome(Call call) {
  try {
    return call();
  } catch (const std::invalid_argument& error) {
    const std::string message = error.what();
    return {message.begin(), message.end()};
  }
}

rows::Bytes estimated(const Decoder& decoder, std::size_t slot) {
  return outcome([&] {
    const Row row(rows::Bytes(decoder.length() * size_of(decoder.dtype())), 0);
    decoder.estimate(slot, row.data);
    return rows::Bytes(row.data, row.data + decoder.length() * size_of(decoder.dtype()));
  });
}

rows::Bytes recovered(const Decoder& decoder, const Slots& slots) {
  return outcome([&] {
    const std::size_t bytes = decoder.length() * size_of(decoder.dtype());
    std::vector<Row> made;
    std::vector<void*> to;
    for (std::size_t m = 0; m < slots.size(); ++m) {
      made.emplace_back(rows::Bytes(bytes), size_of(decoder.dtype()) * m);
      to.push_back(made.back().data);
    }
    rows::Bytes all(1, decoder.recover(slots, to.data()));
    for (const Row& row : made) all.insert(all.end(), row.data, row.data + bytes);
    return all;
  });
}

rows::Bytes residual(const Decoder& decoder) {
  return outcome([&] {
    const std::vector<double> norms = decoder.residual();
    const auto* bytes = reinterpret_cast<const unsigned char*>(norms.data());
    return rows::Bytes(bytes, bytes + norms.size() * sizeof(double));
  });
}

rows::Bytes syndrome(const Decoder& decoder) {
  return outcome([&] {
    const std::size_t bytes = decoder.r() * decoder.length() * accumulator_size_of(decoder.dtype());
    const Row row(rows::Bytes(bytes), accumulator_size_of(decoder.dtype()));
    decoder.syndrome(row.data);
    return rows::Bytes(row.data, row.data + bytes);
  });
}

// One decoder under random calls, and the pushes that it has accepted since it was last reset.
class Run {
 public:
  Run(Setting setting, std::mt19937& rng)
      : setting_(std::move(setting)), decoder_(setting_.decoder()), rng_(rng) {}

  void step() {
    const std::size_t kind = below(20, rng_);
    if (kind == 0) {
      decoder_.reset();
      accepted_.clear();
    } else if (kind < 14) {
      push();
    }
    read();
  }

  int accepted = 0, refused = 0;

 private:
  bool has(std::size_t slot) const {
    for (const Push& push : accepted_) {
      if (push.slot == slot) return true;
    }
    return false;
  }

  void push() {
    const std::size_t slot = below(setting_.k + setting_.r + 1, rng_);
    rows::Bytes values = random_values(setting_.dtype, setting_.length, rng_);
    const bool check = below(8, rng_) > 0, poisoned = below(4, rng_) == 0;
    if (poisoned) {
      const std::size_t places[] = {0, setting_.length - 1, below(setting_.length, rng_)};
      poison(setting_.dtype, values, places[below(3, rng_)], rng_);
    }
    Push push{slot, Row(values, size_of(setting_.dtype) * below(33, rng_)), check};
    const bool good = slot < setting_.k + setting_.r && !has(slot) && !(poisoned && check);
    const rows::Bytes refusal = outcome([&] {
      decoder_.push(slot, push.row.data, check);
      return rows::Bytes();
    });
    CHECK(refusal.empty() == good);
    ++(refusal.empty() ? accepted : refused);
    if (refusal.empty()) accepted_.push_back(std::move(push));
  }

  void read() const {
    Decoder anew = setting_.decoder();
    for (const Push& push : accepted_) anew.push(push.slot, push.row.data, push.check);
    CHECK(decoder_.ready() == anew.ready());
    CHECK(decoder_.missing() == anew.missing());
    for (std::size_t slot = 0; slot < setting_.k + 1; ++slot) {
      CHECK(estimated(decoder_, slot) == estimated(anew, slot));
    }
    CHECK(recovered(decoder_, decoder_.missing()) == recovered(anew, anew.missing()));
    CHECK(recovered(decoder_, {0}) == recovered(anew, {0}));
    CHECK(residual(decoder_) == residual(anew));
    CHECK(syndrome(decoder_) == syndrome(anew));
  }

  const Setting setting_;
  Decoder decoder_;
  std::vector<Push> accepted_;
  std::mt19937& rng_;
};

}  // namespace

int main(int count, char** arguments) {
  const double seconds = count > 1 ? std::atof(arguments[1]) : 2;
  const auto seed = static_cast<unsigned>(count > 2 ? std::atoi(arguments[2]) : 20210718);
  std::mt19937 rng(seed);
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  const auto goes_on = [&] {
    return std::chrono::steady_clock::now() < end && check::failures == 0;
  };
  int decoders = 0, accepted = 0, refused = 0;
  while (goes_on()) {
    Run run(random_setting(rng), rng);
    for (std::size_t steps = 1 + below(20, rng); steps > 0 && goes_on(); --steps) run.step();
    ++decoders;
    accepted += run.accepted;
    refused += run.refused;
  }
  std::printf("seed %u: %d decoders, %d pushes accepted, %d refused\n", seed, decoders, accepted,
              refused);
  CHECK(accepted > 0 && refused > 0);
  return check::finish("fuzz");
}
