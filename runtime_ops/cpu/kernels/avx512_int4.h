// int4 rows with AVX-512 VNNI.
//
// Four rows' bytes are interleaved, and their lower and upper halves give the even and the odd outputs: vpdpbusd
// multiplies the unsigned halves q + 8 by the four rows' signed 8-bit multipliers and adds the products. The sums of 8
// rows fit into 16 bits, 8 * 15 * 127 < 2^15, and those of the group are kept in 16, which leaves them in the
// first-level cache. They count modulo 2^16, in which the excess of 8 * sum of m[i] is taken off at the end, and the
// true sum fits: 32 rows * 8 * 127 = 32512 < 2^15.
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

// Adds 4 rows to 128 columns: sums[2 j] has, for each of the 4 lanes, the even columns of its jth eight columns, and
// sums[2 j + 1] the odd ones.
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

// Adds 8 rows to a stripe, and prefetches the same stripe of others, and of the next 8 for the second time. Of each 128
// sums, those of 32 j to 32 j + 31 belong, for each of the 4 lanes, to its jth eight columns, the even ones first.
template <bool kIsFirst>
__attribute__((noinline)) void AddRows(const void* const* group_rows, const uint32_t (*quads)[kMaxBlocks],
                                       Stripe stripe, int block_bits, const RowsAhead<5>& ahead, ScalesAhead* scales,
                                       int16_t* sums) {
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
    for (size_t j = 0; j < 8; ++j) vector[j] = _mm512_setzero_si512();
#pragma GCC unroll 2
    for (size_t set = 0; set < kRowsAtOnce / kSetRows; ++set) {
      const __m512i multipliers = Spread(quads[set] + (c >> block_bits), block_of_lane);
      AddVector([&](size_t i) __attribute__((always_inline)) { return load(set * kSetRows + i); }, multipliers, vector);
    }
    for (size_t j = 0; j < 4; ++j) {
      const __m512i sum = _mm512_packs_epi32(vector[2 * j], vector[2 * j + 1]);
      to[j] = kIsFirst ? sum : _mm512_add_epi16(to[j], sum);
    }
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

// Four vectors of 32 consecutive columns each, of lane after lane, from the sums of a vector's lanes.
inline __attribute__((always_inline)) void InOrder(const __m512i* sums, __m512i excess, __m512i* ordered) {
  const __m512i even_odd = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
  const __m512i lower = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                upper = _mm512_or_si512(lower, _mm512_set1_epi64(4));
  __m512i eights[4];  // lane l: columns 32 l + 8 j to 32 l + 8 j + 7
#pragma GCC unroll 4
  for (size_t j = 0; j < 4; ++j) eights[j] = _mm512_shuffle_epi8(_mm512_sub_epi16(sums[j], excess), even_odd);
#pragma GCC unroll 2
  for (size_t half = 0; half < 2; ++half) {  // lane after lane: columns 16 half to 16 half + 15
    ordered[half] = _mm512_permutex2var_epi64(eights[2 * half], lower, eights[2 * half + 1]);
    ordered[2 + half] = _mm512_permutex2var_epi64(eights[2 * half], upper, eights[2 * half + 1]);
  }
}

// out += unit * (sums - 8 * sum of m), in the order of columns.
__attribute__((noinline)) void Finish(const int16_t* sums, const Multipliers& multipliers, size_t columns,
                                      int block_bits, const RowsAhead<4>& ahead, float* out) {
  const __m512i block_of_lane = BlockOfLane(block_bits);
  for (size_t c = 0; c < columns; c += kVectorColumns) {
    ahead.Prefetch(c / 2);
    const __m512i eightfold = _mm512_slli_epi32(Spread(multipliers.sums + (c >> block_bits), block_of_lane), 3);
    const __m512i excess = _mm512_mask_blend_epi16(0xAAAAAAAA, eightfold, _mm512_slli_epi32(eightfold, 16));
    __m512i ordered[4];
    InOrder(reinterpret_cast<const __m512i*>(sums + c), excess, ordered);
#pragma GCC unroll 8
    for (size_t sixteen = 0; sixteen < 8; ++sixteen) {
      const size_t lane = sixteen / 2, column = c + lane * kLaneColumns + sixteen % 2 * kLanes;
      if (column >= columns) continue;
      const __m512i from = ordered[lane / 2 * 2 + sixteen % 2];
      const __m256i integers = lane % 2 == 0 ? _mm512_castsi512_si256(from) : _mm512_extracti64x4_epi64(from, 1);
      const __mmask16 lanes = FirstLanes(columns - column);
      const __m512 unit = _mm512_set1_ps(multipliers.units[column >> block_bits]);
      const __m512 sum = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(integers));
      _mm512_mask_storeu_ps(out + column, lanes, _mm512_fmadd_ps(sum, unit, LoadLanes(out + column, lanes)));
    }
  }
}

void AddGroup(const RowGroup& group, const Multipliers& multipliers, Stripe stripe, float* out) {
  alignas(64) int16_t sums[kMaxStripe];
  const size_t columns = stripe.end - stripe.begin, first_byte = stripe.begin / 2;
  const int block_bits = __builtin_ctzll(group.block);
  const void* const* next = group.rows + kRowsAhead + Pack8::kRowsAhead;
  ScalesAhead scales(group, stripe.begin >> block_bits, (columns + group.block - 1) >> block_bits);
  for (size_t i = 0; i < group.count; i += kRowsAtOnce, next += 5) {
    const auto add = i == 0 ? AddRows<true> : AddRows<false>;
    add(group.rows + i, multipliers.packed + i / kSetRows, stripe, block_bits, {next, first_byte}, &scales, sums);
  }
  Finish(sums, multipliers, columns, block_bits, {next, first_byte}, out + stripe.begin);
}

}  // namespace int4
}  // namespace
}  // namespace sparsecc
