// What a product's outputs begin with.
#pragma once

#include <algorithm>
#include <cstddef>

#include "product.h"
#include "ranges.h"

namespace sparsecc {

// Sets some columns of out[rows, columns] to the bias, or to 0.
inline void InitializeOutput(const Product& product, Range columns, float* out) {
  for (size_t row = 0; row < product.rows; ++row) {
    float* to = out + row * product.weights.columns;
    if (product.bias != nullptr) {
      std::copy(product.bias + columns.begin, product.bias + columns.end, to + columns.begin);
    } else {
      std::fill(to + columns.begin, to + columns.end, 0.0f);
    }
  }
}

}  // namespace sparsecc
