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

constexpr uintptr_t kHugePage = uintptr_t{2} << 20;  // where pages have 4 KiB

// What a tensor's map reads ahead goes past its end, in sizes that leave the next tensor in small pages. Without
// read-ahead the system reads one huge page at a time, so each is touched once. The advice is taken back at once: of
// pages that are read at random Linux keeps none in memory for being used.
void ReadInHugePages(const Weights& weights, void* first_page, uintptr_t end) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(first_page);
  if (madvise(first_page, end - begin, MADV_RANDOM) != 0) return;
  const auto first = reinterpret_cast<uintptr_t>(weights.data);
  for (uintptr_t at = first; at < end; at += kHugePage) *reinterpret_cast<const volatile char*>(at);
  *reinterpret_cast<const volatile char*>(end - 1);
  madvise(first_page, end - begin, MADV_NORMAL);
}

// Since Linux 6.16 ext4 keeps files in huge pages too. Before, reading without read-ahead would mostly just be slower.
bool KeepsFilesInHugePages() {
  utsname system;
  int major = 0, minor = 0;
  return uname(&system) == 0 && std::sscanf(system.release, "%d.%d", &major, &minor) == 2 &&
         (major > 6 || (major == 6 && minor >= 16));
}

// Newer kernels read single small pages after so many misses without read-ahead.
constexpr size_t kMostMisses = 100;

}  // namespace
#endif

void HugePages::Ask(const Weights& weights) {
#ifdef MADV_HUGEPAGE
  const size_t bytes = weights.channels * weights.columns * BitsPerWeight(weights.type) / 8;
  if (bytes < kHugePage) return;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(weights.data) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(weights.data) + bytes;
  void* const first_page = reinterpret_cast<void*>(begin);
  if (madvise(first_page, end - begin, MADV_HUGEPAGE) != 0) return;  // small pages are as right
  static const bool are_kept = page == 4096 && KeepsFilesInHugePages();
  if (are_kept && bytes < kMostMisses * kHugePage) ReadInHugePages(weights, first_page, end);
#else
  (void)weights;
#endif
}

}  // namespace sparsecc
