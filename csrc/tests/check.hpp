// The least of a test framework: CHECK counts and prints, `finish` gives main's exit code.
#pragma once

#include <cmath>
#include <cstdio>
#include <stdexcept>
#include <string>

namespace check {

inline int failures = 0;
inline int checks = 0;

inline void that(bool good, const char* text, const char* file, int line,
                 const std::string& detail = "") {
  ++checks;
  if (good) return;
  ++failures;
  std::fprintf(stderr, "%s:%d: failed: %s %s\n", file, line, text, detail.c_str());
}

// Does `work` throw std::invalid_argument whose message holds `part`?
template <class Work>
bool refuses(Work work, const std::string& part) {
  try {
    work();
  } catch (const std::invalid_argument& error) {
    return std::string(error.what()).find(part) != std::string::npos;
  }
  return false;
}

inline int finish(const char* name) {
  std::printf("%s: %d checks, %d failed\n", name, checks, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace check

#define CHECK(condition) check::that((condition), #condition, __FILE__, __LINE__)
#define CHECK_NEAR(got, want, tolerance)                                                     \
  check::that(std::abs(static_cast<double>(got) - static_cast<double>(want)) <= (tolerance), \
              #got " near " #want, __FILE__, __LINE__,                                       \
              "got " + std::to_string(got) + ", want " + std::to_string(want))
