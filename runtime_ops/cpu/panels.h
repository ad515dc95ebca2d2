// The weights that are unpacked together, where many rows of values are multiplied.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/kernels.h"
#include "product.h"
#include "ranges.h"

namespace sparsecc {

inline size_t PartsOf(size_t count, size_t size) { return (count + size - 1) / size; }

// The weights of some active channels in a stripe of columns.
struct Panels {
  Range active;
  Stripe stripe;
};

// All panels of some columns, of which there are some active channels: stripe after stripe, tile after tile.
class PanelsOf {
 public:
  PanelsOf(size_t active, Range columns) : active_(active), columns_(columns), tiles_(PartsOf(active, kTileChannels)) {}

  size_t count() const { return PartsOf(columns_.end - columns_.begin, kUnpackedColumns) * tiles_; }

  Panels operator[](size_t index) const {
    const size_t first = index % tiles_ * kTileChannels, begin = columns_.begin + index / tiles_ * kUnpackedColumns;
    return {{first, std::min(first + kTileChannels, active_)},
            {begin, std::min(begin + kUnpackedColumns, columns_.end)}};
  }

 private:
  size_t active_;
  Range columns_;
  size_t tiles_;
};

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

}  // namespace sparsecc
