#include "huge_pages.h"

#ifdef __linux__
#include <sys/mman.h>
#include <sys/utsname.h>
#include <unistd.h>
#endif

#include <cstdint>
#include <cstdio>

namespace sparsecc {

#ifdef MADV_HUGEPAGE
namespace {

// Since Linux 5.18 a map that wants huge pages is read from the disk in whole ones, also where nothing is read ahead.
bool ReadsWholeHugePages() {
  utsname system;
  int major = 0, minor = 0;
  return uname(&system) == 0 && std::sscanf(system.release, "%d.%d", &major, &minor) == 2 &&
         (major > 5 || (major == 5 && minor >= 18));
}

}  // namespace
#endif

void HugePages::Ask(const Weights& weights) {
#ifdef MADV_HUGEPAGE
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t bytes = weights.channels * weights.columns * BitsPerWeight(weights.type) / 8;
  if (bytes < kHugePage) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(weights.data) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(weights.data) + bytes;
  void* const memory = reinterpret_cast<void*>(begin);
  if (madvise(memory, end - begin, MADV_HUGEPAGE) != 0) return;  // small pages are as right
  // What one tensor's map reads ahead goes past its end, and leaves the next one's pages small.
  static const bool reads_whole = page == 4096 && ReadsWholeHugePages();
  if (reads_whole) madvise(memory, end - begin, MADV_RANDOM);
#else
  (void)weights;
#endif
}

}  // namespace sparsecc
