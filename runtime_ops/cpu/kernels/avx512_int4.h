// int4 rows with AVX-512 VNNI.
//
// Four rows' bytes are interleaved, and their lower and upper halves give the even and the odd outputs: vpdpbusd
// multiplies the unsigned halves q + 8 by the four rows' signed 8-bit multipliers and adds the products to a sum of 32
// bits. The sums begin with what the 8 adds too much, -8 * sum of m[i].
//
// The group is added 8 rows at a time over the whole stripe and not all 32 rows line by line: rows often lie a multiple
// of 4 KiB apart, and more lines than a cache set has ways would push each other out between prefetch and use. Four
// rows at a time store the sums twice as often, which a core with 32-byte stores feels.
#pragma once

#include "avx512_multipliers.h"

namespace sparsecc {
namespace {
namespace int4 {

constexpr size_t kRowsAtOnce = 8;
constexpr size_t kSetRows = Pack8::kRows;
constexpr size_t kVectorColumns = 128;  // of one 64-byte vector
constexpr int kLaneBits = 5;            // interleaving moves bytes in lanes of 16, which have 2^5 columns
constexpr size_t kLaneColumns = 1 << kLaneBits;

// For each of a vector's lanes of 32 columns, the place of its block among those that the vector spans.
inline __m512i BlockOfLane(int block_bits) {
  const __m512i lane = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  return _mm512_srl_epi32(lane, _mm_cvtsi32_si128(block_bits - kLaneBits));
}

// Four consecutive blocks' integers, each in the lanes of its block.
inline __m512i Spread(const void* blocks, __m512i block_of_lane) {
  const __m128i four = _mm_loadu_si128(static_cast<const __m128i*>(blocks));
  return _mm512_permutexvar_epi32(block_of_lane, _mm512_castsi128_si512(four));
}

// Adds 4 rows to 128 columns. Of each 128 sums, those of 16 j to 16 j + 15 belong, for each of the 4 lanes, to the even
// columns of its j / 2th eight columns, and to the odd ones for odd j.
template <typename LoadRow>
inline __attribute__((always_inline)) void AddVector(const LoadRow& load, __m512i multipliers, __m512i* sums) {
  const __m512i rows[kSetRows] = {load(0), load(1), load(2), load(3)};
  const __m512i low01 = _mm512_unpacklo_epi8(rows[0], rows[1]), high01 = _mm512_unpackhi_epi8(rows[0], rows[1]);
  const __m512i low23 = _mm512_unpacklo_epi8(rows[2], rows[3]), high23 = _mm512_unpackhi_epi8(rows[2], rows[3]);
  const __m512i quads[4] = {_mm512_unpacklo_epi16(low01, low23), _mm512_unpackhi_epi16(low01, low23),
                            _mm512_unpacklo_epi16(high01, high23), _mm512_unpackhi_epi16(high01, high23)};
  const __m512i sign = _mm512_set1_epi8(8), half = _mm512_set1_epi8(15);
  constexpr int kXorThenAnd = 0x28;  // (a ^ b) & c
#pragma GCC unroll 4
  for (size_t j = 0; j < 4; ++j) {
    const __m512i even = _mm512_ternarylogic_epi32(quads[j], sign, half, kXorThenAnd);
    const __m512i odd = _mm512_ternarylogic_epi32(_mm512_srli_epi16(quads[j], 4), sign, half, kXorThenAnd);
    sums[2 * j] = _mm512_dpbusd_epi32(sums[2 * j], even, multipliers);
    sums[2 * j + 1] = _mm512_dpbusd_epi32(sums[2 * j + 1], odd, multipliers);
  }
}

// Adds 8 rows to a stripe, and prefetches the same stripe of others, and of the next 8 for the second time.
template <bool kIsFirst>
__attribute__((noinline)) void AddRows(const void* const* group_rows, const uint32_t (*quads)[kMaxBlocks],
                                       const int32_t* multiplier_sums, Stripe stripe, int block_bits,
                                       const RowsAhead<5>& ahead, ScalesAhead* scales, int32_t* sums) {
  const uint8_t* rows[kRowsAtOnce];
  for (size_t i = 0; i < kRowsAtOnce; ++i) rows[i] = static_cast<const uint8_t*>(group_rows[i]) + stripe.begin / 2;
  static_assert(kRowsAtOnce <= kRowsAhead, "the rows added next are known");
  const RowsAhead<kRowsAtOnce> soon(group_rows + kRowsAtOnce, stripe.begin / 2);
  const size_t columns_per_scale_line = size_t{4} << block_bits;
  const __m512i block_of_lane = BlockOfLane(block_bits);
  const auto add = [&](size_t c, const auto& load) __attribute__((always_inline)) {
    ahead.Prefetch(c / 2);
    soon.Prefetch(c / 2);
    if (c % columns_per_scale_line == 0) scales->PrefetchLine();
    auto* to = reinterpret_cast<__m512i*>(sums + c);
    __m512i vector[8];
    if (kIsFirst) {
      const __m512i eightfold = _mm512_slli_epi32(Spread(multiplier_sums + (c >> block_bits), block_of_lane), 3);
      const __m512i excess = _mm512_sub_epi32(_mm512_setzero_si512(), eightfold);
      for (size_t j = 0; j < 8; ++j) vector[j] = excess;
    } else {
      for (size_t j = 0; j < 8; ++j) vector[j] = to[j];
    }
#pragma GCC unroll 2
    for (size_t set = 0; set < kRowsAtOnce / kSetRows; ++set) {
      const __m512i multipliers = Spread(quads[set] + (c >> block_bits), block_of_lane);
      AddVector([&](size_t i) __attribute__((always_inline)) { return load(set * kSetRows + i); }, multipliers, vector);
    }
    for (size_t j = 0; j < 8; ++j) to[j] = vector[j];
  };
  const size_t columns = stripe.end - stripe.begin;
  size_t c = 0;
  for (; c + kVectorColumns <= columns; c += kVectorColumns) {
    add(c, [&](size_t i) __attribute__((always_inline)) { return _mm512_loadu_si512(rows[i] + c / 2); });
  }
  if (c == columns) return;
  const __mmask64 last = (1ull << (columns - c + 1) / 2) - 1;
  add(c, [&](size_t i) __attribute__((always_inline)) { return _mm512_maskz_loadu_epi8(last, rows[i] + c / 2); });
}

// Four vectors of 16 consecutive columns, 32 columns apart, from the sums of their even and their odd columns.
inline __attribute__((always_inline)) void InOrder(const __m512i* sums, __m512i* ordered) {
  __m512i four[4];  // lane l: columns 32 l + 4 j to 32 l + 4 j + 3
  for (size_t j = 0; j < 2; ++j) {
    four[2 * j] = _mm512_unpacklo_epi32(sums[2 * j], sums[2 * j + 1]);
    four[2 * j + 1] = _mm512_unpackhi_epi32(sums[2 * j], sums[2 * j + 1]);
  }
  const __m512i lower[2] = {_mm512_shuffle_i32x4(four[0], four[1], 0x44), _mm512_shuffle_i32x4(four[2], four[3], 0x44)};
  const __m512i upper[2] = {_mm512_shuffle_i32x4(four[0], four[1], 0xEE), _mm512_shuffle_i32x4(four[2], four[3], 0xEE)};
  ordered[0] = _mm512_shuffle_i32x4(lower[0], lower[1], 0x88);
  ordered[1] = _mm512_shuffle_i32x4(lower[0], lower[1], 0xDD);
  ordered[2] = _mm512_shuffle_i32x4(upper[0], upper[1], 0x88);
  ordered[3] = _mm512_shuffle_i32x4(upper[0], upper[1], 0xDD);
}

// out += unit * sums, in the order of columns.
__attribute__((noinline)) void Finish(const int32_t* sums, const Multipliers& multipliers, size_t columns,
                                      int block_bits, const RowsAhead<4>& ahead, float* out) {
  for (size_t c = 0; c < columns; c += kVectorColumns) {
    ahead.Prefetch(c / 2);
    const auto* from = reinterpret_cast<const __m512i*>(sums + c);
#pragma GCC unroll 2
    for (size_t half = 0; half < 2; ++half) {
      __m512i ordered[4];
      InOrder(from + 4 * half, ordered);
#pragma GCC unroll 4
      for (size_t lane = 0; lane < 4; ++lane) {
        const size_t column = c + lane * kLaneColumns + half * kLanes;
        if (column >= columns) continue;
        const __mmask16 lanes = FirstLanes(columns - column);
        const __m512 unit = _mm512_set1_ps(multipliers.units[column >> block_bits]);
        const __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(ordered[lane]), unit, LoadLanes(out + column, lanes));
        _mm512_mask_storeu_ps(out + column, lanes, sum);
      }
    }
  }
}

void AddGroup(const RowGroup& group, const Multipliers& multipliers, Stripe stripe, float* out) {
  alignas(64) int32_t sums[kMaxStripe];
  const size_t columns = stripe.end - stripe.begin, first_byte = stripe.begin / 2;
  const int block_bits = __builtin_ctzll(group.block);
  const void* const* next = group.rows + kRowsAhead + Pack8::kRowsAhead;
  ScalesAhead scales(group, stripe.begin >> block_bits, (columns + group.block - 1) >> block_bits);
  for (size_t i = 0; i < group.count; i += kRowsAtOnce, next += 5) {
    const auto add = i == 0 ? AddRows<true> : AddRows<false>;
    add(group.rows + i, multipliers.packed + i / kSetRows, multipliers.sums, stripe, block_bits, {next, first_byte},
        &scales, sums);
  }
  Finish(sums, multipliers, columns, block_bits, {next, first_byte}, out + stripe.begin);
}

}  // namespace int4
}  // namespace
}  // namespace sparsecc
