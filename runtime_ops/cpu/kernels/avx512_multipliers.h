// The first half of a product with quantized weights, with AVX-512: each row's value times each of its block scales, as
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
// 16. The integers of the rows that an instruction multiplies and adds at once lie side by side in 32 bits.
#pragma once

#include "avx512_vectors.h"
#include "kernels.h"
#include "rows_ahead.h"

namespace sparsecc {
namespace {

constexpr size_t kBlocksAtOnce = kLanes;
constexpr size_t kMaxBlocks = kMaxStripe / 32;

struct Multipliers {
  alignas(64) uint32_t packed[kMaxGroup / 2][kMaxBlocks];  // for each set of rows, block after block
  alignas(64) int32_t sums[kMaxBlocks];                    // over the group, of m[i]
  alignas(64) float units[kMaxBlocks];
};

// Two rows of 16 bits each.
struct Pack16 {
  static constexpr size_t kRows = 2;
  static constexpr size_t kColumnsPerByte = 1;
  static constexpr size_t kRowsAhead = 4;  // prefetched while a stripe's blocks are filled
  static constexpr float kLargest = 32767.0f;
  static __m512i Pack(const __m512i* rows) {
    return _mm512_mask_blend_epi16(0xAAAAAAAA, rows[0], _mm512_slli_epi32(rows[1], 16));
  }
};

// Four rows of 8 bits each.
struct Pack8 {
  static constexpr size_t kRows = 4;
  static constexpr size_t kColumnsPerByte = 2;
  static constexpr size_t kRowsAhead = 8;
  static constexpr float kLargest = 127.0f;
  static __m512i Pack(const __m512i* rows) {
    const __m512i row_after_row =
        _mm512_packs_epi16(_mm512_packs_epi32(rows[0], rows[1]), _mm512_packs_epi32(rows[2], rows[3]));
    const __m128i side_by_side = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_shuffle_epi8(row_after_row, _mm512_broadcast_i32x4(side_by_side));
  }
};

// The largest |value|; NaN or infinite where a value is.
inline float LargestValue(const RowGroup& group) {
  static_assert(kMaxGroup == 2 * kLanes, "two vectors of values are compared");
  const __m512i magnitude = _mm512_set1_epi32(0x7FFFFFFF);
  // As integers, in which a NaN is the largest of all.
  const __m512i first = _mm512_and_si512(_mm512_loadu_si512(group.values), magnitude);
  const __m512i second = _mm512_and_si512(_mm512_loadu_si512(group.values + kLanes), magnitude);
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128(_mm512_reduce_max_epi32(_mm512_max_epi32(first, second)))));
}

// Fills 16 blocks from `b` on, of which those in `lanes` exist. False where a unit is not finite or too small to be
// divided by.
template <typename Pack>
inline __attribute__((always_inline)) bool FillBlocks(const RowGroup& group, size_t first_block, __mmask16 lanes,
                                                      float largest_value, size_t b,
                                                      const RowsAhead<Pack::kRowsAhead>& ahead,
                                                      Multipliers* multipliers) {
  const auto load = [&](size_t i) __attribute__((always_inline)) {
    return _mm256_maskz_loadu_epi16(lanes, group.scales[i] + first_block + b);
  };
  __m256i largest_scale = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (size_t i = 0; i < kMaxGroup; ++i) {  // the bits of positive float16 are in the order of their values
    largest_scale = _mm256_max_epu16(largest_scale, _mm256_and_si256(load(i), _mm256_set1_epi16(0x7FFF)));
  }
  const __m512 unit = _mm512_mul_ps(_mm512_cvtph_ps(largest_scale), _mm512_set1_ps(largest_value / Pack::kLargest));
  const __mmask16 is_zero = _mm512_cmp_ps_mask(unit, _mm512_setzero_ps(), _CMP_EQ_OQ);
  const __mmask16 is_usual = _mm512_cmp_ps_mask(unit, _mm512_set1_ps(1e-30f), _CMP_GE_OQ) &
                             _mm512_cmp_ps_mask(unit, _mm512_set1_ps(1e30f), _CMP_LE_OQ);
  if ((is_zero | is_usual) != 0xFFFF) return false;
  const __m512 inverse = _mm512_maskz_div_ps(is_usual, _mm512_set1_ps(1.0f), unit);
  const auto multiplier = [&](size_t i) __attribute__((always_inline)) {
    const __m512 scaled = _mm512_mul_ps(_mm512_cvtph_ps(load(i)), _mm512_set1_ps(group.values[i]));
    return _mm512_cvtps_epi32(_mm512_mul_ps(scaled, inverse));
  };
  __m512i sum = _mm512_setzero_si512();
  constexpr size_t kSets = kMaxGroup / Pack::kRows;
  const size_t lines_per_set = Pack::kRowsAhead * kBlocksAtOnce * group.block / (Pack::kColumnsPerByte * 64 * kSets);
  LinesAhead<Pack::kRowsAhead> lines(ahead, b * group.block / Pack::kColumnsPerByte);
  for (size_t set = 0; set < kSets; ++set) {
    lines.Prefetch(lines_per_set);
    __m512i rows[Pack::kRows];
#pragma GCC unroll 4
    for (size_t i = 0; i < Pack::kRows; ++i) {
      rows[i] = multiplier(set * Pack::kRows + i);
      sum = _mm512_add_epi32(sum, rows[i]);
    }
    _mm512_store_si512(multipliers->packed[set] + b, Pack::Pack(rows));
  }
  _mm512_store_si512(multipliers->sums + b, sum);
  _mm512_store_ps(multipliers->units + b, unit);
  return true;
}

// Fills the multipliers of a stripe's blocks. False where the integers cannot represent the terms: something is
// infinite, NaN, beyond 1e30 or so small that the unit would be lost.
template <typename Pack>
bool Fill(const RowGroup& group, size_t first_block, size_t blocks, const RowsAhead<Pack::kRowsAhead>& ahead,
          Multipliers* multipliers) {
  const float largest_value = LargestValue(group);
  if (!(largest_value == 0.0f || (largest_value > 1e-25f && largest_value < 1e30f))) return false;
  for (size_t b = 0; b < blocks; b += kBlocksAtOnce) {
    const __mmask16 lanes = FirstLanes(blocks - b);
    if (!FillBlocks<Pack>(group, first_block, lanes, largest_value, b, ahead, multipliers)) return false;
  }
  return true;
}

}  // namespace
}  // namespace sparsecc
