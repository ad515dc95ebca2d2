#include "keep_largest.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>

#include "tasks.h"

namespace sparsecc {
namespace {

constexpr uint32_t kInfinity = 0x7f800000;

// The bits of |x|, which order as the magnitudes do; those of 0 for NaN.
uint32_t Magnitude(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  bits &= 0x7fffffff;
  return bits > kInfinity ? 0 : bits;
}

// Keeps `kept` of `count` entries, which there are; `magnitudes` is room for `count`.
void KeepLargestOfRow(const float* x, size_t count, size_t kept, uint32_t* magnitudes, float* y) {
  std::transform(x, x + count, magnitudes, Magnitude);
  uint32_t smallest = 0;  // that is kept
  if (kept > 0) {
    std::nth_element(magnitudes, magnitudes + kept - 1, magnitudes + count, std::greater<>());
    smallest = magnitudes[kept - 1];
  }
  // As nothing but zeros has the magnitude 0, they need not be counted.
  size_t ties = 0;
  if (smallest > 0) {
    ties = kept - static_cast<size_t>(std::count_if(magnitudes, magnitudes + kept,
                                                    [&](uint32_t magnitude) { return magnitude > smallest; }));
  }
  for (size_t i = 0; i < count; ++i) {
    const uint32_t magnitude = Magnitude(x[i]);
    const bool is_tie = magnitude == smallest && ties > 0;
    ties -= is_tie;
    y[i] = (kept > 0 && magnitude > smallest) || is_tie ? x[i] : 0.0f;
  }
}

}  // namespace

KeepLargest::KeepLargest(const OrtApi* api, const OrtKernelInfo* info) : sparse_rows_(api, info) {
  const int64_t kept = Attribute(api, info, "k", -1);
  if (kept < 0) throw OpError("the attribute k must say how many entries of a row are kept");
  kept_ = static_cast<size_t>(kept);
}

void KeepLargest::Compute(const Call& call) const {
  const auto x = call.Input<float>(0, "X", Call::kAnyRank);
  const size_t rows = Rows(x.shape), columns = Columns(x.shape);
  const auto y = call.Output<float>(0, x.shape);
  if (Elements(x.shape) == 0) return;  // however many rows that may be
  if (sparse_rows_.IsDense(rows)) {
    std::copy_n(x.data, rows * columns, y.data);
    return;
  }
  const Split split(rows, columns);
  const std::unique_ptr<uint32_t[]> magnitudes(new uint32_t[split.tasks() * columns]);
  call.Parallel(split.tasks(), [&](size_t task) {
    for (size_t row = split.begin(task); row < split.end(task); ++row) {
      KeepLargestOfRow(x.data + row * columns, columns, std::min(kept_, columns), &magnitudes[task * columns],
                       y.data + row * columns);
    }
  });
}

}  // namespace sparsecc
