// The first half of a product with quantized weights, with NEON: each row's value times each of its block scales, as
// integers.
//
//   out[c] += sum over i of value[i] * scale[i, b] * q[i, c]        b = c / block
//
// For a group of rows and a block, m[i] = round(value[i] * scale[i, b] / unit[b]) is an integer of at most kLargest, so
// that the sum of m[i] * q[i, c] is exact in integers and is multiplied by unit[b] once. The unit is
//
//   unit[b] = max over i of |value[i]| * max over i of |scale[i, b]| / kLargest
//
// which bounds the error of each term by unit[b] / 2 * |q|: 1/254 of the group's largest term for 8 bits, 1/65534 for
// 16.
#pragma once

#include <cstring>

#include "kernels.h"
#include "neon_vectors.h"

namespace sparsecc {
namespace {

constexpr size_t kBlocksAtOnce = 8;
constexpr size_t kMaxBlocks = kMaxStripe / 32;

// 16 bits for each multiplier, row after row.
struct Words {
  static constexpr float kLargest = 32767.0f;
  static constexpr size_t kRows = 1;
  static void Store(const int16x8_t* rows, size_t row, size_t b, Words* to) { vst1q_s16(to->of[row] + b, rows[0]); }
  int16_t of[kMaxGroup][kMaxBlocks];
};

// 8 bits for each, row after row.
struct Bytes {
  static constexpr float kLargest = 127.0f;
  static constexpr size_t kRows = 1;
  static void Store(const int16x8_t* rows, size_t row, size_t b, Bytes* to) {
    vst1_s8(to->of[row] + b, vmovn_s16(rows[0]));
  }
  int8_t of[kMaxGroup][kMaxBlocks];
};

// 8 bits for each, those of four rows side by side.
struct Quads {
  static constexpr float kLargest = 127.0f;
  static constexpr size_t kRows = 4;
  static void Store(const int16x8_t* rows, size_t row, size_t b, Quads* to) {
    vst4_s8(to->of[row / 4][b], {{vmovn_s16(rows[0]), vmovn_s16(rows[1]), vmovn_s16(rows[2]), vmovn_s16(rows[3])}});
  }
  int8_t of[kMaxGroup / 4][kMaxBlocks][4];
};

template <typename Integers>
struct Multipliers {
  Integers integers;
  float units[kMaxBlocks];
};

// The largest |value|; NaN or infinite where a value is.
inline float LargestValue(const RowGroup& group) {
  // As integers, in which a NaN is the largest of all.
  uint32x4_t largest = vdupq_n_u32(0);
  for (size_t i = 0; i < kMaxGroup; i += 4) {
    const uint32x4_t bits = vreinterpretq_u32_f32(vld1q_f32(group.values + i));
    largest = vmaxq_u32(largest, vandq_u32(bits, vdupq_n_u32(0x7FFFFFFF)));
  }
  const uint32_t bits = vmaxvq_u32(largest);
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// The inverse of four units, 0 for 0. False where one is not finite or too small to be divided by.
inline bool Invert(float32x4_t units, float32x4_t* inverse) {
  const uint32x4_t is_zero = vceqzq_f32(units);
  const uint32x4_t is_usual = vandq_u32(vcgeq_f32(units, vdupq_n_f32(1e-30f)), vcleq_f32(units, vdupq_n_f32(1e30f)));
  if (vminvq_u32(vorrq_u32(is_zero, is_usual)) == 0) return false;
  const float32x4_t quotient = vdivq_f32(vdupq_n_f32(1.0f), units);
  *inverse = vreinterpretq_f32_u32(vandq_u32(is_usual, vreinterpretq_u32_f32(quotient)));
  return true;
}

// Fills 8 blocks from `b` on, of which scales[i] + offset are the scales. False where integers will not do.
template <typename Integers>
bool FillBlocks(const uint16_t* const* scales, size_t offset, const RowGroup& group, float largest_value, size_t b,
                Multipliers<Integers>* multipliers) {
  uint16x8_t largest = vdupq_n_u16(0);
  for (size_t i = 0; i < kMaxGroup; ++i) {  // the bits of positive float16 are in the order of their values
    largest = vmaxq_u16(largest, vandq_u16(vld1q_u16(scales[i] + offset), vdupq_n_u16(0x7FFF)));
  }
  const Eight largest_scale = ToFloats(largest);
  const float largest_multiplier = largest_value / Integers::kLargest;
  const float32x4_t low_unit = vmulq_n_f32(largest_scale.low, largest_multiplier);
  const float32x4_t high_unit = vmulq_n_f32(largest_scale.high, largest_multiplier);
  float32x4_t low_inverse, high_inverse;
  if (!Invert(low_unit, &low_inverse) || !Invert(high_unit, &high_inverse)) return false;
  vst1q_f32(multipliers->units + b, low_unit);
  vst1q_f32(multipliers->units + b + 4, high_unit);
  for (size_t row = 0; row < kMaxGroup; row += Integers::kRows) {
    int16x8_t rows[Integers::kRows];
    for (size_t i = 0; i < Integers::kRows; ++i) {
      const Eight scale = ToFloats(vld1q_u16(scales[row + i] + offset));
      const float value = group.values[row + i];
      const int32x4_t low = vcvtnq_s32_f32(vmulq_f32(vmulq_n_f32(scale.low, value), low_inverse));
      const int32x4_t high = vcvtnq_s32_f32(vmulq_f32(vmulq_n_f32(scale.high, value), high_inverse));
      rows[i] = vcombine_s16(vmovn_s32(low), vmovn_s32(high));
    }
    Integers::Store(rows, row, b, &multipliers->integers);
  }
  return true;
}

// Fills the multipliers of a stripe's blocks. False where the integers cannot represent the terms: something is
// infinite, NaN, beyond 1e30 or so small that the unit would be lost.
template <typename Integers>
bool Fill(const RowGroup& group, size_t first_block, size_t blocks, Multipliers<Integers>* multipliers) {
  const float largest_value = LargestValue(group);
  if (!(largest_value == 0.0f || (largest_value > 1e-25f && largest_value < 1e30f))) return false;
  size_t b = 0;
  for (; b + kBlocksAtOnce <= blocks; b += kBlocksAtOnce) {
    if (!FillBlocks(group.scales, first_block + b, group, largest_value, b, multipliers)) return false;
  }
  if (b == blocks) return true;
  uint16_t last[kMaxGroup][kBlocksAtOnce] = {};  // past them, the file may end
  const uint16_t* last_scales[kMaxGroup];
  for (size_t i = 0; i < kMaxGroup; ++i) {
    for (size_t j = b; j < blocks; ++j) last[i][j - b] = group.scales[i][first_block + j];
    last_scales[i] = last[i];
  }
  return FillBlocks(last_scales, 0, group, largest_value, b, multipliers);
}

inline __attribute__((always_inline)) void PrefetchScales(const RowGroup& group, size_t first_block) {
  for (size_t i = kMaxGroup; i < 2 * kMaxGroup; ++i) __builtin_prefetch(group.scales[i] + first_block);
}

}  // namespace
}  // namespace sparsecc
