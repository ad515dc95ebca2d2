// The product of many rows of values, such as a prompt's.
#pragma once

#include "product.h"

namespace sparsecc {

// Multiplies tile by tile, each tile of the weights being unpacked once for many rows of values: to integers of 16 bits
// where weights are quantized and the kernels can, else to floats.
void MultiplyManyRows(const Call& call, const Kernels& kernels, const Product& product);

}  // namespace sparsecc
