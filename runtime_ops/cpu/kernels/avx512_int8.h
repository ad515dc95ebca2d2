// int8 rows with AVX-512 VNNI.
//
// Two rows' weights are widened to 16 bits and interleaved, and vpdpwssd multiplies them by the pair's two 16-bit
// multipliers and adds both products to a sum. The sums of 32 rows fit: 32 * 128 * 32767 < 2^31.
#pragma once

#include "avx512_multipliers.h"

namespace sparsecc {
namespace {
namespace int8 {

constexpr size_t kRowsAtOnce = 4;
constexpr size_t kVectorColumns = 32;  // a divisor of every block

// Adds rows to 32 columns. The first 16 sums are those of columns 0 to 3, 8 to 11, .. 24 to 27, the others those of
// the columns between.
template <bool kIsFirst, typename LoadRow>
inline __attribute__((always_inline)) void AddVector(const LoadRow& load, const __m512i* pairs, int32_t* sums) {
  __m512i* to = reinterpret_cast<__m512i*>(sums);
  __m512i sum[2] = {kIsFirst ? _mm512_setzero_si512() : to[0], kIsFirst ? _mm512_setzero_si512() : to[1]};
  for (size_t pair = 0; pair < kRowsAtOnce / 2; ++pair) {
    const __m512i even = _mm512_cvtepi8_epi16(load(2 * pair)), odd = _mm512_cvtepi8_epi16(load(2 * pair + 1));
    sum[0] = _mm512_dpwssd_epi32(sum[0], _mm512_unpacklo_epi16(even, odd), pairs[pair]);
    sum[1] = _mm512_dpwssd_epi32(sum[1], _mm512_unpackhi_epi16(even, odd), pairs[pair]);
  }
  to[0] = sum[0];
  to[1] = sum[1];
}

// Adds 4 rows to a stripe, and prefetches the same stripe of others, and of the next 4 for the second time.
template <bool kIsFirst>
__attribute__((noinline)) void AddRows(const void* const* group_rows, const uint32_t (*group_pairs)[kMaxBlocks],
                                       Stripe stripe, int block_bits, const RowsAhead<3>& ahead, ScalesAhead* scales,
                                       int32_t* sums) {
  const int8_t* rows[kRowsAtOnce];
  for (size_t i = 0; i < kRowsAtOnce; ++i) rows[i] = static_cast<const int8_t*>(group_rows[i]) + stripe.begin;
  static_assert(kRowsAtOnce <= kRowsAhead, "the rows added next are known");
  const RowsAhead<kRowsAtOnce> soon(group_rows + kRowsAtOnce, stripe.begin);
  const size_t columns_per_scale_line = size_t{8} << block_bits;
  const auto add = [&](size_t c, const auto& load) __attribute__((always_inline)) {
    if (c % 64 == 0) ahead.Prefetch(c), soon.Prefetch(c);
    if (c % columns_per_scale_line == 0) scales->PrefetchLine();
    __m512i pairs[kRowsAtOnce / 2];
    for (size_t p = 0; p < kRowsAtOnce / 2; ++p) {
      pairs[p] = _mm512_set1_epi32(static_cast<int>(group_pairs[p][c >> block_bits]));
    }
    AddVector<kIsFirst>(load, pairs, sums + c);
  };
  const size_t columns = stripe.end - stripe.begin;
  size_t c = 0;
  for (; c + kVectorColumns <= columns; c += kVectorColumns) {
    add(c, [&](size_t i) __attribute__((always_inline)) {
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[i] + c));
    });
  }
  if (c == columns) return;
  const __mmask32 last = (1u << (columns - c)) - 1;
  add(c, [&](size_t i) __attribute__((always_inline)) { return _mm256_maskz_loadu_epi8(last, rows[i] + c); });
}

// out += unit * sums, in the order of columns.
__attribute__((noinline)) void Finish(const int32_t* sums, const Multipliers& multipliers, size_t columns,
                                      int block_bits, const RowsAhead<4>& ahead, float* out) {
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_or_si512(first, _mm512_set1_epi32(8));
  for (size_t c = 0; c < columns; c += kVectorColumns) {
    if (c % 64 == 0) ahead.Prefetch(c);
    const __m512 unit = _mm512_set1_ps(multipliers.units[c >> block_bits]);
    const auto* from = reinterpret_cast<const __m512i*>(sums + c);
    const __m512i ordered[2] = {_mm512_permutex2var_epi32(from[0], first, from[1]),
                                _mm512_permutex2var_epi32(from[0], second, from[1])};
    for (size_t half = 0; half < 2 && c + half * kLanes < columns; ++half) {
      float* to = out + c + half * kLanes;
      const __mmask16 lanes = FirstLanes(columns - c - half * kLanes);
      const __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(ordered[half]), unit, LoadLanes(to, lanes));
      _mm512_mask_storeu_ps(to, lanes, sum);
    }
  }
}

void AddGroup(const RowGroup& group, const Multipliers& multipliers, Stripe stripe, float* out) {
  alignas(64) int32_t sums[kMaxStripe];
  const size_t columns = stripe.end - stripe.begin, first_byte = stripe.begin;
  const int block_bits = __builtin_ctzll(group.block);
  const void* const* next = group.rows + kRowsAhead + Pack16::kRowsAhead;
  ScalesAhead scales(group, stripe.begin >> block_bits, (columns + group.block - 1) >> block_bits);
  for (size_t i = 0; i < group.count; i += kRowsAtOnce, next += 3) {
    const auto add = i == 0 ? AddRows<true> : AddRows<false>;
    add(group.rows + i, multipliers.packed + i / 2, stripe, block_bits, {next, first_byte}, &scales, sums);
  }
  Finish(sums, multipliers, columns, block_bits, {next, first_byte}, out + stripe.begin);
}

}  // namespace int8
}  // namespace
}  // namespace sparsecc
