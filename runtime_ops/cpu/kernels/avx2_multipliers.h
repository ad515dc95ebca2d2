// The first half of a product with quantized weights: each row's value times each of its block scales, as integers.
//
//   out[c] += sum over i of value[i] * scale[i, b] * q[i, c]        b = c / block
//
// For a group of rows and a block, m[i] = round(value[i] * scale[i, b] / unit[b]) is an integer of at most kLargest, so
// that the sum of m[i] * q[i, c] is exact in integers and is multiplied by unit[b] once. The unit is
//
//   unit[b] = max over i of |value[i]| * max over i of |scale[i, b]| / kLargest
//
// which bounds the error of each term by unit[b] / 2 * |q|: 1/254 of the group's largest term for 8 bits, 1/65534 for
// 16. Two rows make a pair, whose integers lie side by side as the multiply-and-add instructions take them.
//
// Included by units that are compiled for AVX2: everything here has internal linkage.
#pragma once

#include <immintrin.h>

#include "kernels.h"
#include "rows_ahead.h"

namespace sparsecc {
namespace {

constexpr size_t kMaxBlocks = kMaxStripe / 32;
constexpr size_t kPairs = kMaxGroup / 2;

struct Multipliers {
  alignas(32) uint32_t pairs[kPairs][kMaxBlocks];  // as Pack arranges them
  alignas(32) int32_t sums[kMaxBlocks];            // over the group, of m[i]; where Pack needs them
  alignas(32) float units[kMaxBlocks];
};

// The block of a column, without a division where the size of blocks is known: kBlock, or `block` if that is 0.
template <size_t kBlock>
inline size_t BlockOf(size_t column, size_t block) {
  return column / (kBlock == 0 ? block : kBlock);
}

// 16 bits for each multiplier: the pair is (m[even], m[odd]) in the halves of 32 bits, block after block.
struct Pack16 {
  static constexpr float kLargest = 32767.0f;
  static constexpr bool kNeedsSums = false;
  static constexpr size_t kColumnsPerByte = 1;
  static constexpr size_t kRowsAhead = 4;  // prefetched while a stripe's blocks are filled
  static __m256i Pair(__m256i halves) { return halves; }
};

// 8 bits for each: the pair's two bytes, twice. Of each 8 blocks the lower half of a vector gets those at even places
// and the upper half those at odd places, so that one shuffle within halves gives the pair of two neighbouring blocks.
struct Pack8 {
  static constexpr float kLargest = 127.0f;
  static constexpr bool kNeedsSums = true;
  static constexpr size_t kColumnsPerByte = 2;
  static constexpr size_t kRowsAhead = 8;
  static __m256i Pair(__m256i halves) {
    const __m256i twice = _mm256_setr_epi8(0, 2, 0, 2, 4, 6, 4, 6, 8, 10, 8, 10, 12, 14, 12, 14,  //
                                           0, 2, 0, 2, 4, 6, 4, 6, 8, 10, 8, 10, 12, 14, 12, 14);
    return _mm256_shuffle_epi8(halves, twice);
  }
};
// The same for blocks that fill a vector each: they stay in order.
struct Pack8InOrder : Pack8 {};
struct Pack8EvenOdd : Pack8 {
  static __m256i Pair(__m256i halves) {
    return _mm256_permutevar8x32_epi32(Pack8::Pair(halves), _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7));
  }
};

// The largest |value|; NaN or infinite where a value is.
inline float LargestValue(const RowGroup& group) {
  // As integers, in which a NaN is the largest of all.
  __m256i largest = _mm256_setzero_si256();
  for (size_t i = 0; i < kMaxGroup; i += 8) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group.values + i));
    largest = _mm256_max_epi32(largest, _mm256_and_si256(bits, _mm256_set1_epi32(0x7FFFFFFF)));
  }
  __m128i four = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4E));
  four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0xB1));
  return _mm_cvtss_f32(_mm_castsi128_ps(four));
}

// The units of 8 blocks and their inverses, 0 for 0. False where one is not finite or too small to be divided by.
inline bool Units(__m128i largest_scales, float largest_multiplier, float* units, __m256* inverse) {
  const __m256 unit = _mm256_mul_ps(_mm256_cvtph_ps(largest_scales), _mm256_set1_ps(largest_multiplier));
  const __m256 is_zero = _mm256_cmp_ps(unit, _mm256_setzero_ps(), _CMP_EQ_OQ);
  const __m256 is_usual = _mm256_and_ps(_mm256_cmp_ps(unit, _mm256_set1_ps(1e-30f), _CMP_GE_OQ),
                                        _mm256_cmp_ps(unit, _mm256_set1_ps(1e30f), _CMP_LE_OQ));
  if (_mm256_movemask_ps(_mm256_or_ps(is_zero, is_usual)) != 0xFF) return false;
  *inverse = _mm256_andnot_ps(is_zero, _mm256_div_ps(_mm256_set1_ps(1.0f), unit));
  _mm256_store_ps(units, unit);
  return true;
}

// 8 or 16 scales; past the 8, zeros.
template <size_t kEights>
inline __m256i LoadScales(const uint16_t* scales) {
  if (kEights == 2) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales));
  return _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(scales)));
}

// Fills 8 or 16 blocks from `b` on, of which scales[i] + offset are the scales. False where integers will not do.
template <typename Pack, size_t kEights>
inline __attribute__((always_inline)) bool FillBlocks(const uint16_t* const* scales, size_t offset,
                                                      const RowGroup& group, float largest_value, size_t b,
                                                      const RowsAhead<Pack::kRowsAhead>& ahead,
                                                      Multipliers* multipliers) {
  __m256i largest = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (size_t i = 0; i < kMaxGroup; ++i) {  // the bits of positive float16 are in the order of their values
    const __m256i magnitudes = _mm256_and_si256(LoadScales<kEights>(scales[i] + offset), _mm256_set1_epi16(0x7FFF));
    largest = _mm256_max_epu16(largest, magnitudes);
  }
  const __m128i largest_scales[2] = {_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1)};
  const float largest_multiplier = largest_value / Pack::kLargest;
  __m256 inverse[kEights];
  for (size_t eight = 0; eight < kEights; ++eight) {
    if (!Units(largest_scales[eight], largest_multiplier, multipliers->units + b + 8 * eight, inverse + eight)) {
      return false;
    }
  }
  // A float of this size has no digits behind the point: the last 16 bits of the sum are the rounded integer's.
  const __m256 rounder = _mm256_set1_ps(0x1.8p23f);
  const auto multiplier = [&](const uint16_t* eight, __m256 value, __m256 unit_inverse) __attribute__((always_inline)) {
    const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(eight)));
    return _mm256_castps_si256(_mm256_fmadd_ps(_mm256_mul_ps(scale, value), unit_inverse, rounder));
  };
  __m256i sums[kEights] = {};
  const size_t lines_per_pair = kEights * group.block / 32;
  LinesAhead<Pack::kRowsAhead> lines(ahead, b * group.block / Pack::kColumnsPerByte);
#pragma GCC unroll 2
  for (size_t pair = 0; pair < kPairs; ++pair) {
    const uint16_t *even_scales = scales[2 * pair] + offset, *odd_scales = scales[2 * pair + 1] + offset;
    const __m256 even_value = _mm256_broadcast_ss(group.values + 2 * pair);
    const __m256 odd_value = _mm256_broadcast_ss(group.values + 2 * pair + 1);
    lines.Prefetch(lines_per_pair);
    for (size_t eight = 0; eight < kEights; ++eight) {
      const __m256i even = multiplier(even_scales + 8 * eight, even_value, inverse[eight]);
      const __m256i odd = multiplier(odd_scales + 8 * eight, odd_value, inverse[eight]);
      const __m256i halves = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xAA);
      if (Pack::kNeedsSums) sums[eight] = _mm256_add_epi16(sums[eight], halves);
      _mm256_store_si256(reinterpret_cast<__m256i*>(multipliers->pairs[pair] + b + 8 * eight), Pack::Pair(halves));
    }
  }
  for (size_t eight = 0; eight < kEights && Pack::kNeedsSums; ++eight) {
    const __m256i sum = _mm256_madd_epi16(sums[eight], _mm256_set1_epi16(1));
    _mm256_store_si256(reinterpret_cast<__m256i*>(multipliers->sums + b + 8 * eight), sum);
  }
  return true;
}

// Fills the multipliers of a stripe's blocks. False where the integers cannot represent the terms: something is
// infinite, NaN, beyond 1e30 or so small that the unit would be lost.
template <typename Pack>
inline __attribute__((always_inline)) bool Fill(const RowGroup& group, size_t first_block, size_t blocks,
                                                const RowsAhead<Pack::kRowsAhead>& ahead, Multipliers* multipliers) {
  const float largest_value = LargestValue(group);
  if (!(largest_value == 0.0f || (largest_value > 1e-25f && largest_value < 1e30f))) return false;
  size_t b = 0;
  for (; b + 16 <= blocks; b += 16) {
    if (!FillBlocks<Pack, 2>(group.scales, first_block + b, group, largest_value, b, ahead, multipliers)) return false;
  }
  if (b + 8 <= blocks) {
    if (!FillBlocks<Pack, 1>(group.scales, first_block + b, group, largest_value, b, ahead, multipliers)) return false;
    b += 8;
  }
  if (b >= blocks) return true;
  alignas(16) uint16_t last[kMaxGroup][8] = {};  // past them, the file may end
  const uint16_t* last_scales[kMaxGroup];
  for (size_t i = 0; i < kMaxGroup; ++i) {
    for (size_t j = b; j < blocks; ++j) last[i][j - b] = group.scales[i][first_block + j];
    last_scales[i] = last[i];
  }
  return FillBlocks<Pack, 1>(last_scales, 0, group, largest_value, b, ahead, multipliers);
}

}  // namespace
}  // namespace sparsecc
