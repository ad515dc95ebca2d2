// The weights that are unpacked together, where many rows of values are multiplied.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/kernels.h"
#include "output.h"

namespace sparsecc {

// The weights of some active channels in a stripe of columns.
struct Panels {
  Range active;
  Stripe stripe;
};

// All panels of some columns, stripe after stripe.
inline std::vector<Panels> PanelsOf(size_t active, Range columns) {
  std::vector<Panels> all;
  for (size_t begin = columns.begin; begin < columns.end; begin += kUnpackedColumns) {
    for (size_t first = 0; first < active; first += kTileChannels) {
      all.push_back(
          {{first, std::min(first + kTileChannels, active)}, {begin, std::min(begin + kUnpackedColumns, columns.end)}});
    }
  }
  return all;
}

// Brings the weights of panels into the second-level cache at an even pace, while the panels before them are
// multiplied: else memory would be idle during the arithmetic, and the arithmetic during the unpacking.
class PanelsAhead {
 public:
  PanelsAhead(const Product& product, Panels panels, size_t steps)
      : weights_(product.weights),
        next_(product.indices + panels.active.begin),
        end_(product.indices + panels.active.end),
        column_(panels.stripe.begin),
        bytes_((panels.stripe.end - panels.stripe.begin) * BitsPerWeight(weights_.type) / 8),
        rows_per_step_((panels.active.end - panels.active.begin + steps - 1) / steps) {}

  void Step() {
    for (size_t i = 0; i < rows_per_step_ && next_ != end_; ++i, ++next_) {
      const char* row = static_cast<const char*>(RowAt(weights_, static_cast<size_t>(*next_), column_));
      for (size_t byte = 0; byte < bytes_; byte += 64) __builtin_prefetch(row + byte, 0, 2);
    }
  }

 private:
  const Weights& weights_;
  const int64_t *next_, *end_;
  size_t column_, bytes_, rows_per_step_;
};

// The groups of at most kPanelRows rows that some rows make, and the panels that a stripe makes.
inline size_t RowGroups(Range rows) { return (rows.end - rows.begin + kPanelRows - 1) / kPanelRows; }
inline size_t PanelCount(Stripe stripe) { return (stripe.end - stripe.begin + kPanelColumns - 1) / kPanelColumns; }

}  // namespace sparsecc
