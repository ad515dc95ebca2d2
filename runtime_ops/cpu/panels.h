// The weights that are unpacked together, where many rows of values are multiplied.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>

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

// How much of the product is done at a time.
struct TileShape {
  size_t rows;
  size_t channels;  // kTileChannels at most
  size_t columns;   // kUnpackedColumns at most
};

// All panels of some columns: tile after tile of the active channels, and stripe after stripe in each. A tile's rows of
// weights are often pages apart. Finding a page takes the processor longer than reading a line of it, but it remembers
// some thousand of them: so those of a tile are found once for all its stripes.
class PanelsOf {
 public:
  PanelsOf(size_t active, Range columns, const TileShape& shape)
      : active_(active),
        columns_(columns),
        shape_(shape),
        stripes_(PartsOf(columns.end - columns.begin, shape.columns)) {}

  size_t count() const { return stripes_ * PartsOf(active_, shape_.channels); }

  Panels operator[](size_t index) const {
    const size_t first = index / stripes_ * shape_.channels;
    const size_t begin = columns_.begin + index % stripes_ * shape_.columns;
    return {{first, std::min(first + shape_.channels, active_)},
            {begin, std::min(begin + shape_.columns, columns_.end)}};
  }

 private:
  size_t active_;
  Range columns_;
  TileShape shape_;
  size_t stripes_;
};

// Sums of some rows and columns, apart from the product's outputs: rows of those often lie a multiple of 4 KiB apart,
// and would compete for the same few lines of the cache; of these they lie an odd number of lines apart.
class Sums {
 public:
  Sums(size_t rows, Range columns)
      : first_column_(columns.begin),
        stride_((PartsOf(columns.end - columns.begin, kPanelColumns) | 1) * kPanelColumns),
        data_(new float[rows * stride_]) {}

  void Clear(Range rows) {
    first_row_ = rows.begin;
    std::fill_n(data_.get(), (rows.end - rows.begin) * stride_, 0.0f);
  }

  size_t stride() const { return stride_; }
  float* At(size_t row, size_t column) const {
    return data_.get() + (row - first_row_) * stride_ + column - first_column_;
  }

 private:
  size_t first_row_ = 0, first_column_, stride_;
  std::unique_ptr<float[]> data_;
};

// What has to be fetched for these panels, if it is to be done by so many fetches.
inline PanelsAhead Ahead(const Product& product, const Panels& panels, size_t fetches) {
  const auto [active, stripe] = panels;
  PanelsAhead ahead;
  ahead.weights = &product.weights;
  ahead.next = product.indices + active.begin;
  ahead.end = product.indices + active.end;
  ahead.column = stripe.begin;
  ahead.bytes = (stripe.end - stripe.begin) * BitsPerWeight(product.weights.type) / 8;
  ahead.lines_per_fetch = PartsOf((active.end - active.begin) * PartsOf(ahead.bytes, 64), std::max<size_t>(fetches, 1));
  return ahead;
}

}  // namespace sparsecc
