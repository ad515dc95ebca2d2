// Many rows of values times weights that are unpacked to float.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "panels.h"
#include "tensor.h"

namespace sparsecc {

// to[channel, row] = values[row, channel] of some rows and active channels.
inline void Transpose(const Product& product, Range rows, Range active, float* to) {
  const size_t count = rows.end - rows.begin;
  for (size_t r = 0; r < count; ++r) {
    const float* values = product.values + (rows.begin + r) * product.active;
    for (size_t k = active.begin; k < active.end; ++k) to[(k - active.begin) * count + r] = values[k];
  }
}

// The values tile by tile, each transposed in groups of kPanelRows rows. Rows of values often lie a multiple of 4 KiB
// apart, and would compete for the same few lines of the cache.
class FloatValues {
 public:
  static constexpr size_t kTileRows = 32 * kPanelRows;

  FloatValues(const Call& call, const Product& product) : active_(product.active), data_(product.rows * active_) {
    call.Parallel(PartsOf(product.rows, kPanelRows), [&](size_t group) {
      const size_t first = group * kPanelRows;
      const Range rows = {first, std::min(first + kPanelRows, product.rows)};
      Transpose(product, rows, {0, active_}, data_.data() + first * active_);
    });
  }

  // Adds the values times the weights of some panels to sums[rows, kUnpackedColumns], and fetches the weights of the
  // next ones.
  void MultiplyPanels(const Kernels& kernels, const Product& product, Range rows, Panels panels, Panels next,
                      float* sums) const {
    alignas(64) float unpacked[kTileChannels * kUnpackedColumns];
    const Weights& weights = product.weights;
    const auto [active, stripe] = panels;
    const size_t count = active.end - active.begin;
    PanelsAhead ahead(product, next,
                      PartsOf(rows.end - rows.begin, kPanelRows) * PartsOf(stripe.end - stripe.begin, kPanelColumns));
    kernels.unpack_panels[weights.type](weights, product.indices + active.begin, count, stripe, unpacked);
    for (size_t column = stripe.begin; column < stripe.end; column += kPanelColumns) {
      for (size_t row = rows.begin; row < rows.end; row += kPanelRows) {
        ahead.Step();
        const size_t group_rows = std::min(kPanelRows, rows.end - row);
        kernels.multiply_panel({Group(row, group_rows, active.begin), group_rows,
                                unpacked + (column - stripe.begin) * count, count,
                                sums + (row - rows.begin) * kUnpackedColumns + column - stripe.begin, kUnpackedColumns,
                                std::min(kPanelColumns, stripe.end - column)});
      }
    }
  }

 private:
  // The group of rows that begins with `row`: [channels of the tile, rows of the group].
  const float* Group(size_t row, size_t group_rows, size_t first_active) const {
    return data_.data() + row * active_ + group_rows * first_active;
  }

  size_t active_;
  std::vector<float> data_;
};

}  // namespace sparsecc
