// int8 rows with AVX2.
//
// Two rows' weights are widened to 16 bits and interleaved, and madd multiplies them by the pair's two 16-bit
// multipliers and adds the two products. The sums of 32 rows are kept in 32 bits: 32 * 128 * 32767 < 2^31.
#pragma once

#include "avx2_multipliers.h"

namespace sparsecc {
namespace {
namespace int8 {

constexpr size_t kRowsAtOnce = 4;
constexpr size_t kVectorColumns = 32;  // handled with one load of the multipliers, and a divisor of every block

// Adds rows to 16 columns. The sums are those of columns 0 to 3, 8 to 11, 4 to 7 and 12 to 15.
template <bool kIsFirst>
inline __attribute__((always_inline)) void AddVector(const int8_t* const* rows, size_t column, const __m256i* pairs,
                                                     int32_t* sums) {
  const auto load = [&](size_t i) __attribute__((always_inline)) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[i] + column)));
  };
  __m256i sum[2];
  for (size_t pair = 0; pair < kRowsAtOnce / 2; ++pair) {
    const __m256i even = load(2 * pair), odd = load(2 * pair + 1);
    const __m256i products[2] = {_mm256_madd_epi16(_mm256_unpacklo_epi16(even, odd), pairs[pair]),
                                 _mm256_madd_epi16(_mm256_unpackhi_epi16(even, odd), pairs[pair])};
    for (size_t j = 0; j < 2; ++j) sum[j] = pair == 0 ? products[j] : _mm256_add_epi32(sum[j], products[j]);
  }
  for (size_t j = 0; j < 2; ++j) {
    __m256i* to = reinterpret_cast<__m256i*>(sums + column) + j;
    *to = kIsFirst ? sum[j] : _mm256_add_epi32(*to, sum[j]);
  }
}

// Adds 4 rows to a stripe, and prefetches the same stripe of others.
template <bool kIsFirst, size_t kBlock>
__attribute__((noinline)) void AddRows(const void* const* group_rows, const uint32_t (*group_pairs)[kMaxBlocks],
                                       Stripe stripe, size_t block, const RowsAhead<3>& ahead, ScalesAhead* scales,
                                       int32_t* sums) {
  const int8_t* rows[kRowsAtOnce];
  for (size_t i = 0; i < kRowsAtOnce; ++i) rows[i] = static_cast<const int8_t*>(group_rows[i]) + stripe.begin;
  const size_t columns = stripe.end - stripe.begin;
  const auto prefetch = [&](size_t c) __attribute__((always_inline)) {
    ahead.Prefetch(c);
    if (c % (8 * (kBlock == 0 ? block : kBlock)) == 0) scales->PrefetchLine();
  };
  const auto add = [&](size_t c) __attribute__((always_inline)) {
    const size_t b = BlockOf<kBlock>(c, block);
    __m256i pairs[kRowsAtOnce / 2];
    for (size_t p = 0; p < kRowsAtOnce / 2; ++p) pairs[p] = _mm256_set1_epi32(static_cast<int>(group_pairs[p][b]));
    AddVector<kIsFirst>(rows, c, pairs, sums);
    AddVector<kIsFirst>(rows, c + 16, pairs, sums);
  };
  size_t c = 0;
  for (; c + 64 <= columns; c += 64) prefetch(c), add(c), add(c + kVectorColumns);
  if (c < columns) prefetch(c), add(c);
}

// out += unit * sums, in the order of columns.
template <size_t kBlock>
__attribute__((noinline)) void Finish(const int32_t* sums, const Multipliers& multipliers, size_t columns, size_t block,
                                      const RowsAhead<4>& ahead, float* out) {
  for (size_t c = 0; c < columns; c += 16) {
    if (c % 64 == 0) ahead.Prefetch(c);
    const __m256 unit = _mm256_set1_ps(multipliers.units[BlockOf<kBlock>(c, block)]);
    const auto* from = reinterpret_cast<const __m256i*>(sums + c);
    const __m256i low = _mm256_load_si256(from), high = _mm256_load_si256(from + 1);
    const __m256 first = _mm256_cvtepi32_ps(_mm256_permute2x128_si256(low, high, 0x20));
    const __m256 second = _mm256_cvtepi32_ps(_mm256_permute2x128_si256(low, high, 0x31));
    _mm256_storeu_ps(out + c, _mm256_fmadd_ps(first, unit, _mm256_loadu_ps(out + c)));
    _mm256_storeu_ps(out + c + 8, _mm256_fmadd_ps(second, unit, _mm256_loadu_ps(out + c + 8)));
  }
}

template <size_t kBlock>
void AddGroup(const RowGroup& group, const Multipliers& multipliers, Stripe stripe, float* out) {
  alignas(32) int32_t sums[kMaxStripe];
  const size_t columns = stripe.end - stripe.begin, first_byte = stripe.begin;
  const void* const* next = group.rows + kRowsAhead + Pack16::kRowsAhead;
  ScalesAhead scales(group, stripe.begin / group.block, columns / group.block);
  for (size_t i = 0; i < group.count; i += kRowsAtOnce, next += 3) {
    const auto add = i == 0 ? AddRows<true, kBlock> : AddRows<false, kBlock>;
    add(group.rows + i, multipliers.pairs + i / 2, stripe, group.block, {next, first_byte}, &scales, sums);
  }
  Finish<kBlock>(sums, multipliers, columns, group.block, {next, first_byte}, out + stripe.begin);
}

}  // namespace int8
}  // namespace
}  // namespace sparsecc
