#include "product.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "many_rows.h"
#include "output.h"
#include "ranges.h"
#include "tasks.h"

namespace sparsecc {
namespace {

// Up to here, each row of values reads the weights anew, from the cache. Above, unpacking them once for all is faster.
constexpr size_t FewRows(WeightType type) { return BitsPerWeight(type) >= 16 ? 2 : 6; }

// For several rows of values, a group's quantized weights should stay in the cache from one to the next.
constexpr size_t kSharedStripeBytes = 1024;

// Columns added at once. The outputs of floats take half of a 32 KiB first-level cache.
size_t StripeColumns(const Kernels& kernels, WeightType type, size_t rows) {
  if (BitsPerWeight(type) >= 16) return rows > 1 ? 1024 : 4096;
  return (rows > 1 ? kSharedStripeBytes : kernels.stripe_bytes) * 8 / BitsPerWeight(type);
}

// The weights of a row that a task reads in one run at least, where it can: shorter runs are read more slowly. With
// more tasks than parts of the active channels, runs become shorter. They become longer where halving the active
// channels instead of the rows makes as many tasks.
constexpr size_t kLongRunBytes = 4096, kRunBytes = 2048, kShortestRunBytes = 1024;

// Waking another thread costs some microseconds, in which one thread reads about this much.
constexpr size_t kBytesPerTask = 1 << 16;

// Parts of the active channels have outputs of their own, which are added up at the end.
constexpr size_t kMaxActiveParts = 8;

// Whether rows can be entered at any stripe's first column: where it begins a byte and a block.
bool IsRegular(const Weights& weights) {
  const bool is_whole_bytes = weights.type != kInt4 || (weights.columns % 2 == 0 && weights.block % 2 == 0);
  return is_whole_bytes && kSharedStripeBytes * 8 / BitsPerWeight(weights.type) % weights.block == 0;
}

// The rows of some active channels; the next group's follow them.
RowGroup Group(const Product& product, Range active) {
  const Weights& weights = product.weights;
  RowGroup group;
  group.count = std::min(kMaxGroup, active.end - active.begin);
  group.block = weights.block;
  const int64_t* indices = product.indices + active.begin;
  const size_t available = active.end - active.begin;
  const size_t rows = std::min(available, kMaxGroup + kRowsAhead);
  for (size_t i = 0; i < rows; ++i) group.rows[i] = RowAt(weights, static_cast<size_t>(indices[i]), 0);
  std::fill(group.rows + rows, group.rows + kMaxGroup + kRowsAhead, group.rows[rows - 1]);
  if (weights.scales == nullptr) return group;
  const size_t scales = std::min(available, 2 * kMaxGroup);
  for (size_t i = 0; i < scales; ++i) group.scales[i] = ScalesAt(weights, static_cast<size_t>(indices[i]), 0);
  std::fill(group.scales + scales, group.scales + 2 * kMaxGroup, group.scales[scales - 1]);
  return group;
}

// Adds the product of some active channels, in some columns, to out[rows, columns].
void AddActive(const Kernels& kernels, const Product& product, Range active, Range columns, float* out) {
  const Weights& weights = product.weights;
  const size_t width = StripeColumns(kernels, weights.type, product.rows);
  for (size_t first = active.begin; first < active.end; first += kMaxGroup) {
    RowGroup group = Group(product, {first, active.end});
    for (size_t begin = columns.begin; begin < columns.end; begin += width) {
      const Stripe stripe = {begin, std::min(begin + width, columns.end)};
      for (size_t row = 0; row < product.rows; ++row) {
        std::copy_n(product.values + row * product.active + first, group.count, group.values);
        std::fill(group.values + group.count, group.values + kMaxGroup, 0.0f);
        kernels.add_rows[weights.type](group, stripe, out + row * weights.columns);
      }
    }
  }
}

// Tasks of at least kBytesPerTask, first along the rows of the weights as long as their runs stay long, then across.
struct Grid {
  explicit Grid(const Product& product) {
    const Weights& weights = product.weights;
    const size_t row_bytes = std::max<size_t>(1, weights.columns * BitsPerWeight(weights.type) / 8);
    const size_t worth = product.active * row_bytes * product.rows / kBytesPerTask;
    const size_t tasks = std::clamp<size_t>(worth, 1, MaxTasks());
    const size_t needed = std::min((tasks + kMaxActiveParts - 1) / kMaxActiveParts, row_bytes / kShortestRunBytes);
    column_parts = std::clamp<size_t>(std::max(row_bytes / kRunBytes, needed), 1, tasks);
    active_parts = std::clamp<size_t>(tasks / column_parts, 1, kMaxActiveParts);
    if (active_parts == 1 && column_parts % 2 == 0 && row_bytes / column_parts < kLongRunBytes) {
      column_parts /= 2;
      active_parts = 2;
    }
  }
  size_t column_parts, active_parts;
};

void AddTo(float* __restrict out, const float* __restrict more, size_t count) {
  for (size_t i = 0; i < count; ++i) out[i] += more[i];
}

// Adds the first `apart` active channels as groups of their own, and then the others in groups of kMaxGroup.
void MultiplyGroups(const Call& call, const Kernels& kernels, const Product& product, size_t apart) {
  const Grid grid(product);
  const size_t columns = product.weights.columns, step = std::max<size_t>(64, product.weights.block);
  const size_t outputs = product.rows * columns;
  std::vector<float> partial((grid.active_parts - 1) * outputs, 0.0f);
  call.Parallel(grid.column_parts * grid.active_parts, [&](size_t task) {
    const size_t active_part = task / grid.column_parts;
    const Range stripe = Part(columns, step, grid.column_parts, task % grid.column_parts);
    float* out = active_part == 0 ? product.out : partial.data() + (active_part - 1) * outputs;
    if (active_part == 0) {
      InitializeOutput(product, stripe, out);
      AddActive(kernels, product, {0, apart}, stripe, out);
    }
    const Range others = Part(product.active - apart, kMaxGroup, grid.active_parts, active_part);
    AddActive(kernels, product, {apart + others.begin, apart + others.end}, stripe, out);
  });
  for (size_t part = 0; part + 1 < grid.active_parts; ++part) {
    AddTo(product.out, partial.data() + part * outputs, outputs);
  }
}

// Where one value is this many times the mean, the values that share a unit with it would be rounded too coarsely.
constexpr float kOutlier = 8.0f;

// Sixteen sums, since in a single one each addition would wait for the one before.
float SumOfMagnitudes(const float* values, size_t count) {
  constexpr size_t kSums = 16;
  float sums[kSums] = {};
  size_t a = 0;
  for (; a + kSums <= count; a += kSums) {
    for (size_t i = 0; i < kSums; ++i) sums[i] += std::fabs(values[a + i]);
  }
  for (; a < count; ++a) sums[0] += std::fabs(values[a]);
  return std::accumulate(sums, sums + kSums, 0.0f);
}

void MultiplyFewRows(const Call& call, const Kernels& kernels, const Product& product) {
  const size_t active = product.active;
  if (product.weights.scales == nullptr || product.rows > 1 || active == 0) {
    return MultiplyGroups(call, kernels, product, 0);
  }
  const float magnitude = kOutlier * SumOfMagnitudes(product.values, active) / static_cast<float>(active);
  const auto is_outlier = [magnitude](float value) { return std::fabs(value) > magnitude; };
  if (std::count_if(product.values, product.values + active, is_outlier) == 0) {  // vectorized, unlike none_of
    return MultiplyGroups(call, kernels, product, 0);
  }
  std::vector<float> values(product.values, product.values + active);
  std::vector<int64_t> indices(product.indices, product.indices + active);
  size_t outliers = 0;
  for (size_t a = 0; a < active; ++a) {
    if (!is_outlier(values[a])) continue;
    std::swap(values[a], values[outliers]);
    std::swap(indices[a], indices[outliers++]);
  }
  Product ordered = product;
  ordered.values = values.data();
  ordered.indices = indices.data();
  MultiplyGroups(call, kernels, ordered, outliers);
}

}  // namespace

void Multiply(const Call& call, const Kernels& kernels, const Product& product) {
  if (product.rows == 0 || product.weights.columns == 0) return;
  if (product.rows <= FewRows(product.weights.type) && IsRegular(product.weights)) {
    MultiplyFewRows(call, kernels, product);
  } else {
    MultiplyManyRows(call, kernels, product);
  }
}

}  // namespace sparsecc
