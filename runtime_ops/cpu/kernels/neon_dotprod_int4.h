// int4 rows with NEON's dot product.
//
// Four rows' bytes are interleaved, and their lower and upper halves give the even and the odd outputs: sdot multiplies
// them by the four rows' 8-bit multipliers and adds the products to a sum of 32 bits. Each half stays in the upper bits
// of its byte, where one instruction leaves it with its sign: as 16 times the weight.
#pragma once

#include "neon_quantized.h"

namespace sparsecc {
namespace {
namespace dotprod_int4 {

// Adds rows to 32 columns. Of each 8 sums the first 4 are those of the even ones of 8 columns, then those of the odd
// ones.
template <bool kIsFirst>
inline __attribute__((always_inline)) void AddVector(const int8_t* const* rows, size_t byte, int8x16_t multipliers,
                                                     int32_t* sums) {
  const int8x16_t row[kRowsAtOnce] = {vld1q_s8(rows[0] + byte), vld1q_s8(rows[1] + byte), vld1q_s8(rows[2] + byte),
                                      vld1q_s8(rows[3] + byte)};
  const int16x8_t low01 = vreinterpretq_s16_s8(vzip1q_s8(row[0], row[1]));
  const int16x8_t low23 = vreinterpretq_s16_s8(vzip1q_s8(row[2], row[3]));
  const int16x8_t high01 = vreinterpretq_s16_s8(vzip2q_s8(row[0], row[1]));
  const int16x8_t high23 = vreinterpretq_s16_s8(vzip2q_s8(row[2], row[3]));
  const int16x8_t quads[4] = {vzip1q_s16(low01, low23), vzip2q_s16(low01, low23), vzip1q_s16(high01, high23),
                              vzip2q_s16(high01, high23)};
  for (size_t j = 0; j < 4; ++j) {
    const int8x16_t bytes = vreinterpretq_s8_s16(quads[j]);
    const int8x16_t even = vshlq_n_s8(bytes, 4), odd = vandq_s8(bytes, vdupq_n_s8(-16));
    int32_t* to = sums + 8 * j;
    vst1q_s32(to, vdotq_s32(kIsFirst ? vdupq_n_s32(0) : vld1q_s32(to), even, multipliers));
    vst1q_s32(to + 4, vdotq_s32(kIsFirst ? vdupq_n_s32(0) : vld1q_s32(to + 4), odd, multipliers));
  }
}

template <bool kIsFirst>
__attribute__((noinline)) void AddRows(const void* const* group_rows, const int8_t (*quads)[4], Stripe stripe,
                                       size_t block, int32_t* sums) {
  const FourRows<int8_t> four(group_rows, stripe.begin / 2);
  const size_t columns = stripe.end - stripe.begin;
  for (size_t c = 0; c < columns; ++quads) {
    int32_t quad;
    std::memcpy(&quad, *quads, sizeof(quad));
    const int8x16_t multipliers = vreinterpretq_s8_s32(vdupq_n_s32(quad));
    for (const size_t end = c + block; c < end; c += kVectorColumns) {
      four.Prefetch(c / 2);
      AddVector<kIsFirst>(four.rows, c / 2, multipliers, sums + c);
    }
  }
}

// out += unit / 16 * sums, in the order of columns.
__attribute__((noinline)) void Finish(const int32_t* sums, const float* units, size_t columns, size_t block,
                                      float* out) {
  for (size_t c = 0; c < columns; ++units) {
    const float unit = *units / 16;
    for (const size_t end = c + block; c < end; c += 8) {
      const int32x4_t even = vld1q_s32(sums + c), odd = vld1q_s32(sums + c + 4);
      float* to = out + c;
      vst1q_f32(to, vfmaq_n_f32(vld1q_f32(to), vcvtq_f32_s32(vzip1q_s32(even, odd)), unit));
      vst1q_f32(to + 4, vfmaq_n_f32(vld1q_f32(to + 4), vcvtq_f32_s32(vzip2q_s32(even, odd)), unit));
    }
  }
}

void AddGroup(const RowGroup& group, const Multipliers<Quads>& multipliers, Stripe stripe, float* out) {
  int32_t sums[kMaxStripe];
  for (size_t i = 0; i < group.count; i += kRowsAtOnce) {
    const auto add = i == 0 ? AddRows<true> : AddRows<false>;
    add(group.rows + i, multipliers.integers.of[i / kRowsAtOnce], stripe, group.block, sums);
  }
  Finish(sums, multipliers.units, stripe.end - stripe.begin, group.block, out + stripe.begin);
}

}  // namespace dotprod_int4
}  // namespace
}  // namespace sparsecc
