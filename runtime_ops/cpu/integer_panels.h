// Many rows of values times quantized weights, in integers.
//
//   out[r, c] += sum over k of x[r, k] * scale[k, b] * q[k, c]        b = c / block
//
// For a tile of kTileChannels channels and a block, with X and S the largest |x[r, k]| and |scale[k, b]| over k,
//
//   x16[r, k] = round(32767 x[r, k] / X[r])        s16[k, b] = round(32767 scale[k, b] / S[b])
//   m[r, k] = round(x16[r, k] * s16[k, b] / 2^15)
//   out[r, c] += X[r] S[b] 2^15 / 32767^2 * sum over k of m[r, k] * q[k, c]
//
// The weights stay as they are and the sum is exact: 256 * 128 * 32767 < 2^31. Each of the three roundings moves m by
// half at most, so a term is off by 1.5 / 32767 of X S |q| at most. Where the largest scales are those of the largest
// values or no larger than the others by far, that is below 3e-4 of the norm of x[r] W[:, c] and far below what
// rounding the weights to 8 bits did, however large one value is beside the others.
//
// Twice as many integers as floats are multiplied and added at once, and one instruction makes a whole vector of m.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "panels.h"
#include "tensor.h"

namespace sparsecc {

// Whether the kernels have integer panels for weights of this type and shape.
bool HasIntegerPanels(const Kernels& kernels, const Weights& weights);

// Keeps the values as integers of 16 bits, tile by tile, in groups of kPanelRows rows.
class IntegerPanels {
 public:
  // So many columns that each row of weights is read a whole cache line at a time.
  static TileShape Tile(const Kernels&, const Weights&) { return {64 * kPanelRows, kTileChannels, kUnpackedColumns}; }

  IntegerPanels(const Call& call, const Kernels& kernels, const Product& product);

  // The unpacked weights of a task.
  struct Unpacked {
    alignas(64) int16_t weights[kTilePairs * kUnpackedColumns * 2];
  };

  // Adds some rows of values, times the weights of some panels, to the sums, and fetches the weights of the next ones.
  // Values that are infinite, NaN or of extreme size, and infinite or NaN scales, are added in floats.
  void Multiply(Range rows, const Panels& panels, const Panels& next, Sums& sums, Unpacked& unpacked) const;

 private:
  struct Group {  // of rows, in the channels of a tile
    alignas(64) int16_t integers[kTilePairs][kPanelRows][2];
    float units[kPanelRows];
    bool is_usual;
  };

  void Pack(size_t first_row);
  const Group& GroupAt(size_t row, size_t first_active) const {
    return groups_[row / kPanelRows * tiles_ + first_active / kTileChannels];
  }

  const Kernels& kernels_;
  const Product& product_;
  size_t tiles_;
  std::vector<Group> groups_;
};

}  // namespace sparsecc
