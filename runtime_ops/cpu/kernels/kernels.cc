#include "kernels.h"

#include <cstdlib>
#include <cstring>

namespace sparsecc {

const Kernels& FastestKernels() {
  const char* wanted = std::getenv("SPARSECC_KERNELS");
  if (wanted != nullptr && std::strcmp(wanted, "portable") == 0) return kPortableKernels;
#ifdef SPARSECC_HAS_AVX2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    return kAvx2Kernels;
  }
#endif
  return kPortableKernels;
}

}  // namespace sparsecc
