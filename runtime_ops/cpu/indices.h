// Which rows of a weight matrix an operator is to read.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

#include "tensor.h"

namespace sparsecc {

// Throws unless 0 <= index < rows for each. Both conditions are sign bits, so that the loop has no branch.
inline void CheckRange(const Tensor<const int64_t>& indices, size_t rows) {
  const size_t count = Columns(indices.shape);
  uint64_t signs = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t index = static_cast<uint64_t>(indices.data[i]);
    signs |= index | (static_cast<uint64_t>(rows) - 1 - index);
  }
  if (signs >> 63 == 0) return;
  const auto bad = std::find_if(indices.data, indices.data + count,
                                [rows](int64_t index) { return index < 0 || static_cast<uint64_t>(index) >= rows; });
  throw OpError("indices has " + std::to_string(*bad) + " at position " + std::to_string(bad - indices.data) +
                ", but W has " + std::to_string(rows) + " rows");
}

}  // namespace sparsecc
