// int8 rows with NEON.
//
// A row's weights are widened to 16 bits, and smlal multiplies them by the row's 16-bit multiplier and adds the
// products to sums of 32 bits. Those of 32 rows fit: 32 * 128 * 32767 < 2^31.
#pragma once

#include "neon_quantized.h"

namespace sparsecc {
namespace {
namespace int8 {

// Adds rows to 16 columns.
template <bool kIsFirst>
inline __attribute__((always_inline)) void AddVector(const int8_t* const* rows, size_t column,
                                                     const int16_t* multipliers, int32_t* sums) {
  int32x4_t sum[4];
  for (size_t j = 0; j < 4; ++j) sum[j] = kIsFirst ? vdupq_n_s32(0) : vld1q_s32(sums + 4 * j);
  for (size_t i = 0; i < kRowsAtOnce; ++i) {
    const int8x16_t bytes = vld1q_s8(rows[i] + column);
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    sum[0] = vmlal_n_s16(sum[0], vget_low_s16(low), multipliers[i]);
    sum[1] = vmlal_n_s16(sum[1], vget_high_s16(low), multipliers[i]);
    sum[2] = vmlal_n_s16(sum[2], vget_low_s16(high), multipliers[i]);
    sum[3] = vmlal_n_s16(sum[3], vget_high_s16(high), multipliers[i]);
  }
  for (size_t j = 0; j < 4; ++j) vst1q_s32(sums + 4 * j, sum[j]);
}

template <bool kIsFirst>
__attribute__((noinline)) void AddRows(const void* const* group_rows, const int16_t (*row_multipliers)[kMaxBlocks],
                                       Stripe stripe, size_t block, int32_t* sums) {
  const FourRows<int8_t> four(group_rows, stripe.begin);
  const size_t columns = stripe.end - stripe.begin;
  for (size_t b = 0, c = 0; c < columns; ++b) {
    int16_t multipliers[kRowsAtOnce];
    for (size_t i = 0; i < kRowsAtOnce; ++i) multipliers[i] = row_multipliers[i][b];
    for (const size_t end = c + block; c < end; c += 16) {
      four.Prefetch(c);
      AddVector<kIsFirst>(four.rows, c, multipliers, sums + c);
    }
  }
}

// out += unit * sums.
__attribute__((noinline)) void Finish(const int32_t* sums, const float* units, size_t columns, size_t block,
                                      float* out) {
  for (size_t c = 0; c < columns; ++units) {
    for (const size_t end = c + block; c < end; c += kLanes) {
      vst1q_f32(out + c, vfmaq_n_f32(vld1q_f32(out + c), vcvtq_f32_s32(vld1q_s32(sums + c)), *units));
    }
  }
}

void AddGroup(const RowGroup& group, const Multipliers<Words>& multipliers, Stripe stripe, float* out) {
  int32_t sums[kMaxStripe];
  for (size_t i = 0; i < group.count; i += kRowsAtOnce) {
    const auto add = i == 0 ? AddRows<true> : AddRows<false>;
    add(group.rows + i, multipliers.integers.of + i, stripe, group.block, sums);
  }
  Finish(sums, multipliers.units, stripe.end - stripe.begin, group.block, out + stripe.begin);
}

}  // namespace int8
}  // namespace
}  // namespace sparsecc
