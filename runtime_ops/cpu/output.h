// How a product's outputs are divided among tasks, and what they begin with.
#pragma once

#include <algorithm>
#include <cstddef>

#include "product.h"

namespace sparsecc {

struct Range {
  size_t begin, end;
};

// Part `index` of `parts` of [0, count), a multiple of `step` but for the last.
inline Range Part(size_t count, size_t step, size_t parts, size_t index) {
  const size_t steps = (count + step - 1) / step;
  return {std::min(count, steps * index / parts * step), std::min(count, steps * (index + 1) / parts * step)};
}

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
