#include "sparse_linear.h"

#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "product.h"

namespace sparsecc {
namespace {

// The kept channels of a hidden state [rows, channels], and its values there.
struct Active {
  std::vector<int64_t> indices;
  std::vector<float> values;  // [rows, indices.size()]
};

struct Thresholds {
  const float* data;
  size_t step;    // 0 for a threshold that serves all channels
  bool is_dense;  // whether everything is kept

  // The comparison is false for NaN. A zero contributes nothing, even where it is kept.
  bool Keeps(float x, size_t channel) const { return (is_dense || std::fabs(x) >= data[channel * step]) && x != 0.0f; }
};

// Without a branch on the data: at 50 % sparsity it would be mispredicted every other channel.
Active SelectFromRow(const float* x, const Thresholds& thresholds, size_t channels) {
  Active active{std::vector<int64_t>(channels + 1), std::vector<float>(channels + 1)};
  size_t count = 0;
  for (size_t k = 0; k < channels; ++k) {
    active.indices[count] = static_cast<int64_t>(k);
    active.values[count] = x[k];
    count += thresholds.Keeps(x[k], k);
  }
  active.indices.resize(count);
  active.values.resize(count);
  return active;
}

// The channels that any row keeps; where another row does not, its value is 0.
Active SelectFromRows(const float* x, const Thresholds& thresholds, size_t rows, size_t channels) {
  std::vector<uint8_t> is_kept(channels, 0);
  for (size_t row = 0; row < rows; ++row) {
    for (size_t k = 0; k < channels; ++k) is_kept[k] |= thresholds.Keeps(x[row * channels + k], k);
  }
  Active active;
  for (size_t k = 0; k < channels; ++k) {
    if (is_kept[k]) active.indices.push_back(static_cast<int64_t>(k));
  }
  active.values.reserve(rows * active.indices.size());
  for (size_t row = 0; row < rows; ++row) {
    for (const int64_t index : active.indices) {
      const size_t k = static_cast<size_t>(index);
      const float value = x[row * channels + k];
      active.values.push_back(thresholds.Keeps(value, k) ? value : 0.0f);
    }
  }
  return active;
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
  const bool is_dense = sparse_rows_.IsDense(rows);
  if (is_dense && HasOnlyNonZeros(x.data, channels)) {  // in its first row, so every channel is active
    std::vector<int64_t> all(channels);
    std::iota(all.begin(), all.end(), int64_t{0});
    return Multiply(call, kernels_, {x.data, rows, all.data(), channels, linear.weights, linear.bias, out.data});
  }
  const Thresholds thresholds = {t.data, t.shape[0] == 1 ? size_t{0} : size_t{1}, is_dense};
  const Active active =
      rows == 1 ? SelectFromRow(x.data, thresholds, channels) : SelectFromRows(x.data, thresholds, rows, channels);
  Multiply(call, kernels_,
           {active.values.data(), rows, active.indices.data(), active.indices.size(), linear.weights, linear.bias,
            out.data});
}

template class SparseLinear<kFloat32>;
template class SparseLinear<kFloat16>;
template class SparseLinear<kInt8>;
template class SparseLinear<kInt4>;

}  // namespace sparsecc
