// A weight matrix as it lies in the model's file: row k holds what input channel k contributes to every output.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsecc {

enum WeightType : int { kFloat32, kFloat16, kInt8, kInt4, kWeightTypes };

// W[channels, columns]. Quantized, W[k, c] is q[k, c] * scales[k, c / block]: the blocks run along a row, so that a row
// is all that its channel needs. Two int4 share a byte, the one with the even position in the lower half.
struct Weights {
  WeightType type;
  const void* data;
  size_t channels, columns;
  const uint16_t* scales = nullptr;  // float16 [channels, blocks()]
  size_t block = 1;

  size_t blocks() const { return (columns + block - 1) / block; }
};

constexpr size_t BitsPerWeight(WeightType type) {
  return type == kFloat32 ? 32 : type == kFloat16 ? 16 : type == kInt8 ? 8 : 4;
}

// The first column of `column` or later at which a row can be entered: where a byte and a block begin.
inline const void* RowAt(const Weights& weights, size_t channel, size_t column) {
  const size_t bits = BitsPerWeight(weights.type);
  return static_cast<const uint8_t*>(weights.data) + (channel * weights.columns + column) * bits / 8;
}

inline const uint16_t* ScalesAt(const Weights& weights, size_t channel, size_t column) {
  return weights.scales + channel * weights.blocks() + column / weights.block;
}

}  // namespace sparsecc
