// What the x86 variants ask of the machine.
#pragma once

#include <cpuid.h>

namespace codedinv {
namespace {

// F16C has no name in __builtin_cpu_supports of clang before 19 (an error, not a no); its bit is
// CPUID 1, ECX 29. That the system saves the wide registers it needs is asked with AVX2.
inline bool cpu_has_avx2_fma_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0 &&
         __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

}  // namespace
}  // namespace codedinv
