// int4 rows with NEON.
//
// A row's lower and upper half bytes give the even and the odd outputs: smlal multiplies them by the row's 8-bit
// multiplier and adds the products to sums of 16 bits. Those of 32 rows fit: 32 * 8 * 127 = 32512 < 2^15.
#pragma once

#include "neon_quantized.h"

namespace sparsecc {
namespace {
namespace int4 {

// Adds rows to 32 columns. The first 16 sums are those of the even columns, the others those of the odd ones.
template <bool kIsFirst>
inline __attribute__((always_inline)) void AddVector(const int8_t* const* rows, size_t byte,
                                                     const int8x8_t* multipliers, int16_t* sums) {
  int16x8_t sum[4];
  for (size_t j = 0; j < 4; ++j) sum[j] = kIsFirst ? vdupq_n_s16(0) : vld1q_s16(sums + 8 * j);
  for (size_t i = 0; i < kRowsAtOnce; ++i) {
    const int8x16_t bytes = vld1q_s8(rows[i] + byte), even = EvenHalves(bytes), odd = OddHalves(bytes);
    sum[0] = vmlal_s8(sum[0], vget_low_s8(even), multipliers[i]);
    sum[1] = vmlal_s8(sum[1], vget_high_s8(even), multipliers[i]);
    sum[2] = vmlal_s8(sum[2], vget_low_s8(odd), multipliers[i]);
    sum[3] = vmlal_s8(sum[3], vget_high_s8(odd), multipliers[i]);
  }
  for (size_t j = 0; j < 4; ++j) vst1q_s16(sums + 8 * j, sum[j]);
}

template <bool kIsFirst>
__attribute__((noinline)) void AddRows(const void* const* group_rows, const int8_t (*row_multipliers)[kMaxBlocks],
                                       Stripe stripe, size_t block, int16_t* sums) {
  const FourRows<int8_t> four(group_rows, stripe.begin / 2);
  const size_t columns = stripe.end - stripe.begin;
  for (size_t b = 0, c = 0; c < columns; ++b) {
    int8x8_t multipliers[kRowsAtOnce];
    for (size_t i = 0; i < kRowsAtOnce; ++i) multipliers[i] = vdup_n_s8(row_multipliers[i][b]);
    for (const size_t end = c + block; c < end; c += kVectorColumns) {
      four.Prefetch(c / 2);
      AddVector<kIsFirst>(four.rows, c / 2, multipliers, sums + c);
    }
  }
}

// out += unit * sums, in the order of columns.
__attribute__((noinline)) void Finish(const int16_t* sums, const float* units, size_t columns, size_t block,
                                      float* out) {
  for (size_t c = 0; c < columns; ++units) {
    for (const size_t end = c + block; c < end; c += kVectorColumns) {
      for (size_t half = 0; half < 2; ++half) {
        const int16x8_t even = vld1q_s16(sums + c + 8 * half), odd = vld1q_s16(sums + c + 16 + 8 * half);
        const Eight ordered[2] = {ToFloats(vzip1q_s16(even, odd)), ToFloats(vzip2q_s16(even, odd))};
        for (size_t j = 0; j < 2; ++j) {
          float* to = out + c + 16 * half + 8 * j;
          vst1q_f32(to, vfmaq_n_f32(vld1q_f32(to), ordered[j].low, *units));
          vst1q_f32(to + kLanes, vfmaq_n_f32(vld1q_f32(to + kLanes), ordered[j].high, *units));
        }
      }
    }
  }
}

void AddGroup(const RowGroup& group, const Multipliers<Bytes>& multipliers, Stripe stripe, float* out) {
  int16_t sums[kMaxStripe];
  for (size_t i = 0; i < group.count; i += kRowsAtOnce) {
    const auto add = i == 0 ? AddRows<true> : AddRows<false>;
    add(group.rows + i, multipliers.integers.of + i, stripe, group.block, sums);
  }
  Finish(sums, multipliers.units, stripe.end - stripe.begin, group.block, out + stripe.begin);
}

}  // namespace int4
}  // namespace
}  // namespace sparsecc
