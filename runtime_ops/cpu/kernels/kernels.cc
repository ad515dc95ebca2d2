#include "kernels.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(SPARSECC_HAS_NEON) && defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace sparsecc {
namespace {

bool IsAlwaysSupported() { return true; }

#ifdef SPARSECC_HAS_AVX2
bool HasAvx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#endif

#ifdef SPARSECC_HAS_AVX512
bool HasAvx512() {
  return HasAvx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}
#endif

#ifdef SPARSECC_HAS_NEON
bool HasDotProduct() {
#if defined(__linux__)
  return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#elif defined(__APPLE__)
  return true;  // every Mac
#else
  return false;
#endif
}
#endif

struct KernelSet {
  const char* name;
  const Kernels& kernels;
  bool (*is_supported)();
};

// The fastest first.
const KernelSet kKernelSets[] = {
#ifdef SPARSECC_HAS_AVX512
    {"avx512", kAvx512Kernels, HasAvx512},
#endif
#ifdef SPARSECC_HAS_AVX2
    {"avx2", kAvx2Kernels, HasAvx2},
#endif
#ifdef SPARSECC_HAS_NEON
    {"neon_dotprod", kNeonDotprodKernels, HasDotProduct},
    {"neon", kNeonKernels, IsAlwaysSupported},
#endif
    {"portable", kPortableKernels, IsAlwaysSupported},
};

void WarnOnce(const char* wanted) {
  static const int written =
      std::fprintf(stderr, "sparsecc: SPARSECC_KERNELS=%s is not to be had here; the fastest kernels run\n", wanted);
  (void)written;
}

}  // namespace

const Kernels* FindKernels(const char* name) {
  for (const KernelSet& set : kKernelSets) {
    if (std::strcmp(name, set.name) == 0 && set.is_supported()) return &set.kernels;
  }
  return nullptr;
}

const Kernels& FastestKernels() {
  const char* wanted = std::getenv("SPARSECC_KERNELS");
  const Kernels* named = wanted == nullptr ? nullptr : FindKernels(wanted);
  if (named != nullptr) return *named;
  if (wanted != nullptr && *wanted != '\0') WarnOnce(wanted);
  for (const KernelSet& set : kKernelSets) {
    if (set.is_supported()) return set.kernels;
  }
  return kPortableKernels;
}

}  // namespace sparsecc
