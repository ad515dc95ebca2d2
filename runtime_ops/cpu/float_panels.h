// Many rows of values times weights that are unpacked to float.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>

#include "panels.h"
#include "tensor.h"

namespace sparsecc {

// Rows of values [rows, stride], of which some channels are multiplied.
struct Values {
  const float* data;
  size_t stride;
};

// Unpacks some channels of some panels to float.
inline void UnpackAsFloats(const Kernels& kernels, const Product& product, const Panels& panels, Channels channels,
                           float* unpacked) {
  const auto [active, stripe] = panels;
  kernels.unpack_panels[product.weights.type](product.weights, product.indices + active.begin,
                                              active.end - active.begin, channels, stripe, unpacked);
}

// Adds values[rows] times the weights of some panels, which are unpacked, to the sums. Calls `after_each` after every
// product of a few rows and columns.
template <typename AfterEach>
void MultiplyUnpacked(const Kernels& kernels, const Values& values, Range rows, const Panels& panels,
                      const float* unpacked, Sums& sums, PanelsAhead ahead, const AfterEach& after_each) {
  const auto [active, stripe] = panels;
  const size_t count = active.end - active.begin;
  for (size_t column = stripe.begin; column < stripe.end; column += kernels.columns_at_once) {
    for (size_t row = rows.begin; row < rows.end; row += kPanelRows) {
      kernels.multiply_panels({values.data + row * values.stride, values.stride, std::min(kPanelRows, rows.end - row),
                               unpacked + (column - stripe.begin) * count, count, sums.At(row, column), sums.stride(),
                               std::min(kernels.columns_at_once, stripe.end - column), ahead});
      after_each();
    }
  }
}

// Keeps a copy of the values tile by tile: their rows often lie a multiple of 4 KiB apart, and would compete for the
// same few lines of the cache.
class FloatPanels {
 public:
  // Of a tile whose panels are unpacked ahead.
  static constexpr size_t kChannelsAhead = kTileChannels / 2;

  // A tile's values stay in the second-level cache, with the weights of a stripe and of the next one. Where kernels
  // unpack ahead, both have a half of Unpacked. Else the tile's rows of weights span no more than half of the memory
  // whose pages the processor remembers: where they lie a power of two apart, they share few of the places for that.
  // But tiles of fewer channels than half of kTileChannels would cost more.
  static TileShape Tile(const Kernels& kernels, const Weights& weights) {
    if (kernels.unpacks_ahead) return {32 * kPanelRows, kChannelsAhead, kUnpackedColumns};
    constexpr size_t kSpan = size_t{4} << 20;
    const size_t bits = BitsPerWeight(weights.type);
    const size_t channels = kSpan * 8 / bits / weights.columns / kFetchChannels * kFetchChannels;
    const size_t columns = bits < 16 ? kUnpackedColumns : kUnpackedColumns / 2;
    return {32 * kPanelRows, std::clamp(channels, kTileChannels / 2, kTileChannels), columns};
  }

  FloatPanels(const Call& call, const Kernels& kernels, const Product& product)
      : kernels_(kernels), product_(product), values_(new float[product.rows * product.active]) {
    const size_t rows = product.rows, height = Tile(kernels, product.weights).channels;
    call.Parallel(PartsOf(product.active, height), [&](size_t tile) {
      const Range active = {tile * height, std::min((tile + 1) * height, product.active)};
      float* to = values_.get() + rows * active.begin;
      for (size_t row = 0; row < rows; ++row) {
        const float* from = product.values + row * product.active;
        to = std::copy(from + active.begin, from + active.end, to);
      }
    });
  }

  // The unpacked weights of a task. Where the kernels unpack ahead, those of the panels that are multiplied are in one
  // half, and those of the next ones in the other; else they are all in one place.
  struct Unpacked {
    static constexpr size_t kHalf = kChannelsAhead * kUnpackedColumns;
    static_assert(2 * kHalf >= kTileChannels * kUnpackedColumns, "it holds the largest tile's panels");
    alignas(64) float weights[2 * kHalf];
    size_t current = 0;         // where the panels begin: 0 or kHalf
    size_t channels_ahead = 0;  // of the next panels
  };

  // Adds some rows of values, times the weights of some panels, to the sums. Meanwhile it fetches the weights of the
  // next ones, and unpacks what has come.
  void Multiply(Range rows, const Panels& panels, const Panels& next, Sums& sums, Unpacked& unpacked) const {
    const size_t count = panels.active.end - panels.active.begin;
    float* weights = unpacked.weights + unpacked.current;
    UnpackAsFloats(kernels_, product_, panels, {unpacked.channels_ahead, count}, weights);
    unpacked.channels_ahead = 0;
    if (kernels_.unpacks_ahead) unpacked.current = Unpacked::kHalf - unpacked.current;
    const size_t products = PartsOf(rows.end - rows.begin, kPanelRows) *
                            PartsOf(panels.stripe.end - panels.stripe.begin, kernels_.columns_at_once);
    PanelsAhead ahead = Ahead(product_, next, products * (count / kFetchChannels));
    size_t before = 0;  // products before the last one, which fetched what may be unpacked now
    MultiplyUnpacked(kernels_, In(panels.active), rows, panels, weights, sums, ahead, [&] {
      if (!kernels_.unpacks_ahead) return;
      const size_t due = (next.active.end - next.active.begin) * before / products;
      UnpackAsFloats(kernels_, product_, next, {unpacked.channels_ahead, due}, unpacked.weights + unpacked.current);
      unpacked.channels_ahead = due;
      ++before;
    });
  }

 private:
  Values In(Range active) const { return {values_.get() + product_.rows * active.begin, active.end - active.begin}; }

  const Kernels& kernels_;
  const Product& product_;
  std::unique_ptr<float[]> values_;  // [tiles][rows, channels of the tile]
};

}  // namespace sparsecc
