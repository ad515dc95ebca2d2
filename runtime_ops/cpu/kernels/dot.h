// The inner loops of products whose weights hold an output channel in a row: dot products of rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../weights.h"

namespace sparsecc {

constexpr size_t kDotChunk = 32;             // values that share a unit
constexpr size_t kDotStrip = 8 * kDotChunk;  // rounded values are padded to a multiple of so many
constexpr size_t kDotRows = 4;               // weight rows multiplied at once

// One row of values. Rounded, value k is integers[k'] * units[k / kDotChunk], to half a unit; past the last value all
// three are 0. In a row for int8 weights k' is k; in one for int4 weights each 64 values have the 32 of even position
// first, as their weights come out of the bytes.
struct DotValues {
  const float* exact;
  size_t count;
  const int8_t* integers = nullptr;  // -127 to 127; null where only the exact values are to be used
  const float* units = nullptr;
  const float* sums = nullptr;  // of each chunk's integers
};

// Some weight rows, and those read next, which are prefetched; past the last one they repeat it.
struct DotGroup {
  size_t count;  // 1 to kDotRows
  const void* rows[2 * kDotRows];
  const uint16_t* scales[2 * kDotRows];  // float16, of quantized rows only
  bool begins_with_half[2 * kDotRows];   // of int4 rows only: whether the first weight is the upper half of its byte
  size_t block;                          // weights that share a scale
};

// products[i] = the sum over k of values[k] * W[rows[i], k], for each row of the group.
using Dot = void (*)(const DotValues& values, const DotGroup& group, float* products);

// The kernels of two sets, for others to use.
void DotPortable(WeightType type, const DotValues& values, const DotGroup& group, float* products);
#ifdef SPARSECC_HAS_AVX2
void DotAvx2(WeightType type, const DotValues& values, const DotGroup& group, float* products);
#endif

}  // namespace sparsecc
