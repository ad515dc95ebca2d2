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

// Adds values[rows] times the weights of some panels to the sums. Fetches what `ahead` says.
inline void MultiplyAsFloats(const Kernels& kernels, const Product& product, const Values& values, Range rows,
                             const Panels& panels, Sums& sums, PanelsAhead ahead) {
  alignas(64) float unpacked[kTileChannels * kUnpackedColumns];
  const Weights& weights = product.weights;
  const auto [active, stripe] = panels;
  const size_t count = active.end - active.begin;
  kernels.unpack_panels[weights.type](weights, product.indices + active.begin, count, stripe, unpacked);
  for (size_t column = stripe.begin; column < stripe.end; column += kPanelColumns) {
    for (size_t row = rows.begin; row < rows.end; row += kPanelRows) {
      kernels.multiply_panel({values.data + row * values.stride, values.stride, std::min(kPanelRows, rows.end - row),
                              unpacked + (column - stripe.begin) * count, count, sums.At(row, column), sums.stride(),
                              std::min(kPanelColumns, stripe.end - column), ahead});
    }
  }
}

// Keeps a copy of the values tile by tile: their rows often lie a multiple of 4 KiB apart, and would compete for the
// same few lines of the cache.
class FloatPanels {
 public:
  // A tile's values stay in the second-level cache, with the weights of a stripe and of the next one. Its rows of
  // weights span no more than half of the memory whose pages the processor remembers: where they lie a power of two
  // apart, they share few of the places for that. But tiles of fewer channels than half of kTileChannels would cost
  // more.
  static TileShape Tile(const Weights& weights) {
    constexpr size_t kSpan = size_t{4} << 20;
    const size_t bits = BitsPerWeight(weights.type);
    const size_t channels = kSpan * 8 / bits / weights.columns / kFetchChannels * kFetchChannels;
    const size_t columns = bits < 16 ? kUnpackedColumns : kUnpackedColumns / 2;
    return {32 * kPanelRows, std::clamp(channels, kTileChannels / 2, kTileChannels), columns};
  }

  FloatPanels(const Call& call, const Kernels& kernels, const Product& product)
      : kernels_(kernels), product_(product), values_(new float[product.rows * product.active]) {
    const size_t rows = product.rows, height = Tile(product.weights).channels;
    call.Parallel(PartsOf(product.active, height), [&](size_t tile) {
      const Range active = {tile * height, std::min((tile + 1) * height, product.active)};
      float* to = values_.get() + rows * active.begin;
      for (size_t row = 0; row < rows; ++row) {
        const float* from = product.values + row * product.active;
        to = std::copy(from + active.begin, from + active.end, to);
      }
    });
  }

  // Adds some rows of values, times the weights of some panels, to the sums, and fetches the weights of the next ones.
  void Multiply(Range rows, const Panels& panels, const Panels& next, Sums& sums) const {
    const auto [active, stripe] = panels;
    const size_t products =
        PartsOf(rows.end - rows.begin, kPanelRows) * PartsOf(stripe.end - stripe.begin, kPanelColumns);
    const size_t fetches = products * ((active.end - active.begin) / kFetchChannels);
    MultiplyAsFloats(kernels_, product_, In(active), rows, panels, sums, Ahead(product_, next, fetches));
  }

 private:
  Values In(Range active) const { return {values_.get() + product_.rows * active.begin, active.end - active.begin}; }

  const Kernels& kernels_;
  const Product& product_;
  std::unique_ptr<float[]> values_;  // [tiles][rows, channels of the tile]
};

}  // namespace sparsecc
