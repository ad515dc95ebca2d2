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

constexpr size_t kHugePage = size_t{2} << 20;  // where pages have 4 KiB

// Newer kernels read single small pages after so many misses without read-ahead.
constexpr size_t kMostMisses = 100;

// Reads the weights, which lie in these pages. What a tensor's map reads ahead goes past its end, in sizes that leave
// the next tensor in small pages. Without read-ahead the system reads one huge page at a time, so each is touched once.
// The advice is taken back at once: of pages that are read at random Linux keeps none in memory for being used.
void ReadInHugePages(const volatile char* weights, size_t bytes, void* pages, size_t length) {
  if (madvise(pages, length, MADV_RANDOM) != 0) return;
  for (size_t i = 0; i < bytes; i += kHugePage) weights[i];
  weights[bytes - 1];
  madvise(pages, length, MADV_NORMAL);
}

// Since Linux 6.16 ext4 keeps files in huge pages too. Before, reading without read-ahead would mostly just be slower.
bool KeepsFilesInHugePages() {
  utsname system;
  int major = 0, minor = 0;
  return uname(&system) == 0 && std::sscanf(system.release, "%d.%d", &major, &minor) == 2 &&
         (major > 6 || (major == 6 && minor >= 16));
}

}  // namespace
#endif

void HugePages::Ask(const Weights& weights) {
#ifdef MADV_HUGEPAGE
  const size_t bytes = weights.channels * weights.columns * BitsPerWeight(weights.type) / 8;
  if (bytes < kHugePage) return;
  const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const auto* first = static_cast<const char*>(weights.data);
  const size_t before = reinterpret_cast<uintptr_t>(first) % page;  // bytes of the first page
  void* const pages = const_cast<char*>(first) - before;
  if (madvise(pages, before + bytes, MADV_HUGEPAGE) != 0) return;  // small pages are as right
  static const bool are_kept = page == 4096 && KeepsFilesInHugePages();
  if (are_kept && bytes < kMostMisses * kHugePage) ReadInHugePages(first, bytes, pages, before + bytes);
#else
  (void)weights;
#endif
}

}  // namespace sparsecc
