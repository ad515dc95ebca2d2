#include "integer_panels.h"

#include <algorithm>
#include <cstring>

#include "float_panels.h"
#include "half.h"
#include "kernels/panels_ahead.h"

namespace sparsecc {
namespace {

constexpr float kLargestInteger = 32767.0f;

// The largest magnitude; NaN where there is one.
float Largest(const float* numbers, size_t count) {
  int32_t largest = 0;  // as integers, in which a NaN is larger than all else
  for (size_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, numbers + i, sizeof(bits));
    largest = std::max(largest, bits & 0x7FFFFFFF);
  }
  float value;
  std::memcpy(&value, &largest, sizeof(value));
  return value;
}

// Whether numbers of this size can be divided by it, and what is made of them be multiplied by it again.
bool IsUsual(float largest) { return largest == 0.0f || (largest > 1e-25f && largest < 1e30f); }

// to[i] = round(numbers[i] / unit), for results of 16 bits.
void RoundToIntegers(const float* numbers, size_t count, float unit, int16_t* to) {
  const float inverse = unit == 0.0f ? 0.0f : 1.0f / unit;
  for (size_t i = 0; i < count; ++i) {
    const float shifted = numbers[i] * inverse + 0x1.8p23f;  // its last bits are the rounded number
    int32_t bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    to[i] = static_cast<int16_t>(bits);
  }
}

// The scales of a block of columns in the channels of a tile, as integers.
struct BlockScales {
  BlockScales(const Weights& weights, const uint16_t* halves) {
    uint16_t largest_half = 0;
    for (size_t k = 0; k < kTileChannels; ++k) largest_half = std::max<uint16_t>(largest_half, halves[k] & 0x7FFF);
    is_finite = largest_half < 0x7C00;
    if (!is_finite) return;
    float scales[kTileChannels];
    for (size_t k = 0; k < kTileChannels; ++k) scales[k] = FiniteHalfToFloat(halves[k]);
    const float unit_of_integers = FiniteHalfToFloat(largest_half) / kLargestInteger;
    RoundToIntegers(scales, kTileChannels, unit_of_integers, integers[0]);
    unit = unit_of_integers * 0x1p15f / (weights.type == kInt4 ? kInt4Factor : 1);
  }
  alignas(64) int16_t integers[kTilePairs][2];
  float unit;
  bool is_finite;
};

// Copies the scales of some blocks to halves[block][kTileChannels].
void GatherScales(const Product& product, Range active, Range blocks, uint16_t (*halves)[kTileChannels]) {
  const size_t stride = product.weights.blocks();
  for (size_t k = active.begin; k < active.end; ++k) {
    const uint16_t* scales = product.weights.scales + static_cast<size_t>(product.indices[k]) * stride;
    for (size_t b = blocks.begin; b < blocks.end; ++b) halves[b - blocks.begin][k - active.begin] = scales[b];
  }
}

// Not inlined: it is seldom called and takes much of the stack.
__attribute__((noinline)) void AddInFloats(const Kernels& kernels, const Product& product, Range rows,
                                           const Panels& panels, Sums& sums) {
  alignas(64) float unpacked[kTileChannels * kUnpackedColumns];
  const Range active = panels.active;
  UnpackAsFloats(kernels, product, panels, {0, active.end - active.begin}, unpacked);
  MultiplyUnpacked(kernels, {product.values + active.begin, product.active}, rows, panels, unpacked, sums, {}, [] {});
}

}  // namespace

bool HasIntegerPanels(const Kernels& kernels, const Weights& weights) {
  const bool is_whole_bytes = weights.type != kInt4 || weights.columns % 2 == 0;
  return kernels.unpack_integers[weights.type] != nullptr && weights.block % kPanelColumns == 0 && is_whole_bytes;
}

IntegerPanels::IntegerPanels(const Call& call, const Kernels& kernels, const Product& product)
    : kernels_(kernels),
      product_(product),
      tiles_(PartsOf(product.active, kTileChannels)),
      groups_(PartsOf(product.rows, kPanelRows) * tiles_) {
  call.Parallel(PartsOf(product.rows, kPanelRows), [&](size_t group) { Pack(group * kPanelRows); });
}

void IntegerPanels::Pack(size_t first_row) {
  const size_t rows = std::min(kPanelRows, product_.rows - first_row);
  for (size_t first = 0; first < product_.active; first += kTileChannels) {
    Group& group = groups_[first_row / kPanelRows * tiles_ + first / kTileChannels];
    const size_t count = std::min(kTileChannels, product_.active - first);
    group.is_usual = true;
    for (size_t r = 0; r < rows; ++r) {
      const float* values = product_.values + (first_row + r) * product_.active + first;
      const float largest = Largest(values, count);
      group.is_usual &= IsUsual(largest);
      group.units[r] = largest / kLargestInteger;
      int16_t rounded[kTilePairs][2] = {};
      RoundToIntegers(values, count, group.units[r], rounded[0]);
      for (size_t pair = 0; pair < kTilePairs; ++pair) {
        std::memcpy(group.integers[pair][r], rounded[pair], sizeof(rounded[pair]));
      }
    }
  }
}

void IntegerPanels::Multiply(Range rows, const Panels& panels, const Panels& next, Sums& sums,
                             Unpacked& unpacked) const {
  uint16_t halves[kUnpackedColumns / kPanelColumns][kTileChannels] = {};
  const Weights& weights = product_.weights;
  const auto [active, stripe] = panels;
  const size_t count = active.end - active.begin, pairs = PartsOf(count, 2);
  const Range blocks = {stripe.begin / weights.block, (stripe.end - 1) / weights.block + 1};
  GatherScales(product_, active, blocks, halves);
  kernels_.unpack_integers[weights.type](weights, product_.indices + active.begin, count, stripe, unpacked.weights);
  const size_t groups = PartsOf(rows.end - rows.begin, kPanelRows);
  PanelsAhead ahead = Ahead(product_, next, groups * (blocks.end - blocks.begin));
  for (size_t block = blocks.begin; block < blocks.end; ++block) {
    const BlockScales scales(weights, halves[block - blocks.begin]);
    const size_t first = block * weights.block;  // a block may reach far beyond the last column
    const Stripe columns = {std::max(stripe.begin, first), first + std::min(stripe.end - first, weights.block)};
    for (size_t row = rows.begin; row < rows.end; row += kPanelRows) {
      FetchLines(ahead);
      const Group& group = GroupAt(row, active.begin);
      const size_t group_rows = std::min(kPanelRows, rows.end - row);
      if (!scales.is_finite || !group.is_usual) {
        AddInFloats(kernels_, product_, {row, row + group_rows}, {active, columns}, sums);
      } else {
        kernels_.multiply_integers({group.integers[0][0], scales.integers[0], group.units, scales.unit, group_rows,
                                    unpacked.weights + (columns.begin - stripe.begin) * pairs * 2, pairs,
                                    sums.At(row, columns.begin), sums.stride(), columns.end - columns.begin});
      }
    }
  }
}

}  // namespace sparsecc
