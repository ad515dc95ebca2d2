// Many rows of values times weights that are unpacked to float.
#pragma once

#include <cstddef>
#include <vector>

#include "panels.h"
#include "tensor.h"

namespace sparsecc {

// The values tile by tile, each transposed in groups of kPanelRows rows. Rows of values often lie a multiple of 4 KiB
// apart, and would compete for the same few lines of the cache.
class FloatValues {
 public:
  static constexpr size_t kTileRows = 32 * kPanelRows;

  FloatValues(const Call& call, const Product& product) : active_(product.active), data_(product.rows * active_) {
    call.Parallel(PartsOf(product.rows, kPanelRows), [&](size_t group) { PackGroup(product, group * kPanelRows); });
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

  void PackGroup(const Product& product, size_t first) {
    const size_t count = std::min(kPanelRows, product.rows - first);
    float* to = data_.data() + first * active_;
    for (size_t r = 0; r < count; ++r) {
      const float* values = product.values + (first + r) * active_;
      for (size_t k = 0; k < active_; ++k) to[k * count + r] = values[k];
    }
  }

  size_t active_;
  std::vector<float> data_;
};

}  // namespace sparsecc
