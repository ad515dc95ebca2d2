#include "threshold.h"

#include <algorithm>
#include <cmath>

#include "tasks.h"

namespace sparsecc {
namespace {

// The comparison is false for NaN, as in the operator's definition. Inlining would lose __restrict, and with it the
// vector code.
__attribute__((noinline)) void KeepLarge(const float* x, float threshold, size_t count, float* __restrict y) {
  for (size_t i = 0; i < count; ++i) y[i] = std::fabs(x[i]) >= threshold ? x[i] : 0.0f;
}

__attribute__((noinline)) void KeepLarge(const float* x, const float* thresholds, size_t count, float* __restrict y) {
  for (size_t i = 0; i < count; ++i) y[i] = std::fabs(x[i]) >= thresholds[i] ? x[i] : 0.0f;
}

}  // namespace

void Threshold::Compute(const Call& call) const {
  const auto x = call.Input<float>(0, "X", Call::kAnyRank);
  const auto t = ReadThresholds(call, 1, x.shape);
  const size_t rows = Rows(x.shape), columns = Columns(x.shape), thresholds = Columns(t.shape);
  const auto y = call.Output<float>(0, x.shape);
  if (Elements(x.shape) == 0) return;  // however many rows that may be
  const bool is_dense = sparse_rows_.IsDense(rows);
  const Split split(rows, columns);
  call.Parallel(split.tasks(), [&](size_t task) {
    for (size_t row = split.begin(task); row < split.end(task); ++row) {
      const float* from = x.data + row * columns;
      float* to = y.data + row * columns;
      if (is_dense) {
        std::copy_n(from, columns, to);
      } else if (thresholds == 1) {
        KeepLarge(from, t.data[0], columns, to);
      } else {
        KeepLarge(from, t.data, columns, to);
      }
    }
  });
}

}  // namespace sparsecc
