// The product of the active channels' values with their weight rows, split over onnxruntime's threads.
#pragma once

#include "kernels/kernels.h"
#include "tensor.h"
#include "weights.h"

namespace sparsecc {

// out[rows, columns] = values[rows, active] @ W[indices[active], columns] + bias[columns]
struct Product {
  const float* values;
  size_t rows;
  const int64_t* indices;  // each below weights.channels
  size_t active;
  Weights weights;
  const float* bias;  // or null
  float* out;
};

// Every active row of the weights is read once, and no other, as long as `rows` is small. Many rows of values are
// multiplied tile by tile, each tile of the weights being unpacked once. The result does not depend on the number of
// threads of the session.
void Multiply(const Call& call, const Kernels& kernels, const Product& product);

}  // namespace sparsecc
