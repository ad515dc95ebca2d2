#include "sparse_linear.h"

#include <cmath>
#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "product.h"

namespace sparsecc {
namespace {

// The kept channels of a hidden state [rows, channels], and its values there. Not vectors: those would be zeroed first.
struct Active {
  Active(size_t most, size_t rows) : indices(new int64_t[most]), values(new float[most * rows]) {}
  size_t count = 0;
  std::unique_ptr<int64_t[]> indices;
  std::unique_ptr<float[]> values;  // [rows, count]
};

struct Thresholds {
  const float* data;
  size_t step;    // 0 for a threshold that serves all channels
  bool is_dense;  // whether everything is kept

  // The comparison is false for NaN. A zero contributes nothing, even where it is kept.
  bool Keeps(float x, size_t channel) const { return (is_dense || std::fabs(x) >= data[channel * step]) && x != 0.0f; }
};

// Without a branch on the data: at 50 % sparsity it would be mispredicted every other channel. The unconditional store
// behind the last one needs a place too.
template <bool kHasOneThreshold>
Active SelectFromRow(const float* __restrict x, const float* __restrict thresholds, size_t channels) {
  Active active(channels + 1, 1);
  int64_t* __restrict indices = active.indices.get();
  float* __restrict values = active.values.get();
  size_t count = 0;
  for (size_t k = 0; k < channels; ++k) {
    indices[count] = static_cast<int64_t>(k);
    values[count] = x[k];
    const bool is_large = std::fabs(x[k]) >= thresholds[kHasOneThreshold ? 0 : k];
    count += static_cast<size_t>(is_large) & static_cast<size_t>(x[k] != 0.0f);
  }
  active.count = count;
  return active;
}

// The channels that any row keeps; where another row does not, its value is 0.
Active SelectFromRows(const float* x, const Thresholds& thresholds, size_t rows, size_t channels) {
  std::vector<uint8_t> is_kept(channels, 0);
  for (size_t row = 0; row < rows; ++row) {
    for (size_t k = 0; k < channels; ++k) is_kept[k] |= thresholds.Keeps(x[row * channels + k], k);
  }
  Active active(channels, rows);
  for (size_t k = 0; k < channels; ++k) {
    if (is_kept[k]) active.indices[active.count++] = static_cast<int64_t>(k);
  }
  for (size_t row = 0; row < rows; ++row) {
    for (size_t a = 0; a < active.count; ++a) {
      const size_t k = static_cast<size_t>(active.indices[a]);
      const float value = x[row * channels + k];
      active.values[row * active.count + a] = thresholds.Keeps(value, k) ? value : 0.0f;
    }
  }
  return active;
}

Active Select(const float* x, const Thresholds& thresholds, size_t rows, size_t channels) {
  if (rows != 1 || thresholds.is_dense) return SelectFromRows(x, thresholds, rows, channels);
  return thresholds.step == 0 ? SelectFromRow<true>(x, thresholds.data, channels)
                              : SelectFromRow<false>(x, thresholds.data, channels);
}

bool HasOnlyNonZeros(const float* x, size_t count) {
  uint32_t zeros = 0;
  for (size_t k = 0; k < count; ++k) zeros |= static_cast<uint32_t>(x[k] == 0.0f);
  return zeros == 0;
}

}  // namespace

template <WeightType kType>
void SparseLinear<kType>::Compute(const Call& call) const {
  const auto x = call.Input<float>(0, "X", Call::kAnyRank);
  const auto t = ReadThresholds(call, 1, x.shape);
  const Linear linear = weights_.Read(call, 2);
  const size_t rows = Rows(x.shape), channels = Columns(x.shape);
  if (channels != linear.weights.channels) {
    throw OpError("X is " + ToString(x.shape) + ", but W has " + std::to_string(linear.weights.channels) + " rows");
  }
  Shape shape = x.shape;
  shape.back() = static_cast<int64_t>(linear.weights.columns);
  const auto out = call.Output<float>(0, shape);
  if (Elements(shape) == 0) return;
  const bool is_dense = sparse_rows_.IsDense(rows);
  if (is_dense && HasOnlyNonZeros(x.data, channels)) {  // in its first row, so every channel is active
    std::vector<int64_t> all(channels);
    std::iota(all.begin(), all.end(), int64_t{0});
    return Multiply(call, kernels_, {x.data, rows, all.data(), channels, linear.weights, linear.bias, out.data});
  }
  const Thresholds thresholds = {t.data, t.shape[0] == 1 ? size_t{0} : size_t{1}, is_dense};
  const Active active = Select(x.data, thresholds, rows, channels);
  Multiply(call, kernels_,
           {active.values.get(), rows, active.indices.get(), active.count, linear.weights, linear.bias, out.data});
}

template class SparseLinear<kFloat32>;
template class SparseLinear<kFloat16>;
template class SparseLinear<kInt8>;
template class SparseLinear<kInt4>;

}  // namespace sparsecc
