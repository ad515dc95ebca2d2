#include "gather_matmul.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "indices.h"
#include "kernels/dot.h"
#include "tasks.h"

namespace sparsecc {
namespace {

// Values beyond these are not rounded: their units, or products of them, would leave the range of float32.
constexpr float kSmallest = 0x1p-60f, kLargest = 0x1p60f;

constexpr float kLargestInteger = 127, kRounder = 0x1.8p23f;

// Rows of values, each rounded to integers of 8 bits in chunks. See DotValues.
class RoundedRows {
 public:
  RoundedRows(size_t rows, size_t count, bool splits_even_and_odd)
      : stride_((count + kDotStrip - 1) / kDotStrip * kDotStrip),
        splits_even_and_odd_(splits_even_and_odd),
        integers_(rows * stride_),
        units_(rows * stride_ / kDotChunk),
        sums_(rows * stride_ / kDotChunk) {}

  // What is left of the row is exact where it cannot be rounded.
  DotValues Round(size_t row, const float* values, size_t count) {
    int8_t* integers = integers_.data() + row * stride_;
    float* units = units_.data() + row * stride_ / kDotChunk;
    float* sums = sums_.data() + row * stride_ / kDotChunk;
    for (size_t begin = 0; begin < count; begin += kDotChunk) {
      float chunk[kDotChunk] = {};
      std::copy(values + begin, values + std::min(begin + kDotChunk, count), chunk);
      float largest = 0;
      bool is_number = true;
      for (const float value : chunk) {
        largest = std::max(largest, std::fabs(value));
        is_number &= value == value;
      }
      if (largest == 0 && is_number) continue;
      if (!is_number || !(largest >= kSmallest && largest <= kLargest)) return {values, count};
      units[begin / kDotChunk] = largest / kLargestInteger;
      sums[begin / kDotChunk] = RoundChunk(chunk, kLargestInteger / largest, integers + FirstPlace(begin));
    }
    return {values, count, integers, units, sums};
  }

 private:
  // Where a chunk's first value goes; the values of odd position go kDotChunk further on where they are split.
  size_t FirstPlace(size_t begin) const {
    const bool is_second = splits_even_and_odd_ && begin % (2 * kDotChunk) != 0;
    return is_second ? begin - kDotChunk / 2 : begin;
  }

  // Writes the integers and returns their sum.
  float RoundChunk(const float* chunk, float inverse, int8_t* integers) const {
    int8_t in_order[kDotChunk];
    int sum = 0;
    for (size_t k = 0; k < kDotChunk; ++k) {
      // Adding and taking off 1.5 * 2^23 rounds to the nearest integer, and unlike lrintf it is vectorized.
      const int integer = static_cast<int>(chunk[k] * inverse + kRounder - kRounder);
      in_order[k] = static_cast<int8_t>(integer);
      sum += integer;
    }
    for (size_t k = 0; k < kDotChunk; ++k) {
      integers[splits_even_and_odd_ ? k % 2 * kDotChunk + k / 2 : k] = in_order[k];
    }
    return static_cast<float>(sum);
  }

  size_t stride_;
  bool splits_even_and_odd_;
  std::vector<int8_t> integers_;
  std::vector<float> units_, sums_;
};

// Whether every row can be read in chunks: where it begins a byte, and no chunk spans two blocks.
bool IsRegular(const Weights& weights) {
  return weights.block % kDotChunk == 0 && (weights.type != kInt4 || weights.columns % 2 == 0);
}

DotGroup Group(const Weights& weights, const int64_t* indices, size_t available) {
  DotGroup group = {};
  group.count = std::min(kDotRows, available);
  group.block = weights.block;
  for (size_t i = 0; i < 2 * kDotRows; ++i) {
    // Rows past the group's last one are multiplied as well where that is simpler, so they repeat it.
    const size_t last = i < kDotRows ? group.count - 1 : available - 1;
    const size_t row = static_cast<size_t>(indices[std::min(i, last)]);
    group.rows[i] = RowAt(weights, row, 0);
    group.begins_with_half[i] = weights.type == kInt4 && row * weights.columns % 2 != 0;
    if (weights.scales != nullptr) group.scales[i] = ScalesAt(weights, row, 0);
  }
  return group;
}

}  // namespace

template <WeightType kType>
void GatherMatMul<kType>::Compute(const Call& call) const {
  const auto x = call.Input<float>(0, "X", Call::kAnyRank);
  const auto indices = call.Input<int64_t>(1, "indices", 1);
  const Weights weights = weights_.Read(call, 2).weights;
  if (static_cast<size_t>(x.shape.back()) != weights.columns) {
    throw OpError("X is " + ToString(x.shape) + ", but W has " + std::to_string(weights.columns) + " columns");
  }
  CheckRange(indices, weights.channels);
  Shape shape = x.shape;
  shape.back() = indices.shape[0];
  const auto out = call.Output<float>(0, shape);
  const size_t rows = Rows(x.shape), chosen = Columns(indices.shape), count = weights.columns;
  const bool rounds = kIsQuantized && kernels_.dot_rounds && IsRegular(weights);
  RoundedRows rounded(rounds ? rows : 0, count, kType == kInt4);
  std::vector<DotValues> values(rows);
  for (size_t row = 0; row < rows; ++row) {
    const float* exact = x.data + row * count;
    values[row] = rounds ? rounded.Round(row, exact, count) : DotValues{exact, count};
  }
  const Dot dot = kernels_.dot[kType];
  const Split split(chosen, rows * count, kDotRows);
  call.Parallel(split.tasks(), [&](size_t task) {
    for (size_t begin = split.begin(task); begin < split.end(task); begin += kDotRows) {
      const DotGroup group = Group(weights, indices.data + begin, split.end(task) - begin);
      for (size_t row = 0; row < rows; ++row) dot(values[row], group, out.data + row * chosen + begin);
    }
  });
}

template class GatherMatMul<kFloat32>;
template class GatherMatMul<kFloat16>;
template class GatherMatMul<kInt8>;
template class GatherMatMul<kInt4>;

}  // namespace sparsecc
