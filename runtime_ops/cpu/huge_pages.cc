#include "huge_pages.h"

#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <cstdint>

namespace sparsecc {

void HugePages::Ask(const Weights& weights) {
#ifdef MADV_HUGEPAGE
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t bytes = weights.channels * weights.columns * BitsPerWeight(weights.type) / 8;
  if (bytes < kHugePage) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(weights.data) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(weights.data) + bytes;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint: small pages are as right
#else
  (void)weights;
#endif
}

}  // namespace sparsecc
