// int4 rows with AVX2.
//
// Two rows' bytes are interleaved, and their lower and upper halves give the even and the odd outputs: maddubs
// multiplies the unsigned halves q + 8 by the pair's two signed 8-bit multipliers and adds the two products. The sums
// of 32 rows are kept in 16 bits. They count modulo 2^16, in which the excess of 8 * sum of m[i] is taken off at the
// end, and the true sum fits: 32 rows * 8 * 127 = 32512 < 2^15.
//
// The group is added 4 rows at a time over the whole stripe and not all 32 rows line by line: rows often lie a multiple
// of 4 KiB apart, and more lines than a cache set has ways push each other out between prefetch and use. What is
// prefetched of so wide a stripe may fall back to the second-level cache; narrower ones were slower all the same.
#pragma once

#include "avx2_multipliers.h"

namespace sparsecc {
namespace {
namespace int4 {

constexpr size_t kRowsAtOnce = 4;
constexpr size_t kVectorColumns = 64;  // of one 32-byte vector

template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

// Adds rows to 64 columns. Of each 64 sums, the first 16 are those of columns 0, 2, .. 14, 32, .. 46, the next ones of
// 1, 3, .. 15, 33, .. 47, and then the same for columns 16 to 31 and 48 to 63.
template <bool kIsFirst>
inline __attribute__((always_inline)) void AddVector(const uint8_t* const* rows, size_t byte, const __m256i* pairs,
                                                     int16_t* sums) {
  const __m256i excess = _mm256_set1_epi8(static_cast<char>(0x88)), half = _mm256_set1_epi8(15);
  const auto load = [&](size_t i) __attribute__((always_inline)) {
    return _mm256_xor_si256(excess, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(rows[i] + byte)));
  };
  __m256i sum[4];
  for (size_t pair = 0; pair < kRowsAtOnce / 2; ++pair) {
    const __m256i even = load(2 * pair), odd = load(2 * pair + 1);
    const __m256i low = _mm256_unpacklo_epi8(even, odd), high = _mm256_unpackhi_epi8(even, odd);
    const __m256i products[4] = {
        _mm256_maddubs_epi16(_mm256_and_si256(low, half), pairs[pair]),
        _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(low, 4), half), pairs[pair]),
        _mm256_maddubs_epi16(_mm256_and_si256(high, half), pairs[pair]),
        _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(high, 4), half), pairs[pair]),
    };
    for (size_t j = 0; j < 4; ++j) sum[j] = pair == 0 ? products[j] : _mm256_add_epi16(sum[j], products[j]);
  }
  for (size_t j = 0; j < 4; ++j) {
    __m256i* to = reinterpret_cast<__m256i*>(sums) + j;
    *to = kIsFirst ? sum[j] : _mm256_add_epi16(*to, sum[j]);
  }
}

// Adds 4 rows to a stripe, and prefetches the same stripe of others. A vector spans two blocks if kBlock is 32; else it
// lies within one, of kBlock columns or of any multiple of 64 if kBlock is 0.
template <bool kIsFirst, size_t kBlock, size_t kAhead>
__attribute__((noinline)) void AddRows(const void* const* group_rows, const uint32_t (*group_pairs)[kMaxBlocks],
                                       Stripe stripe, size_t block, const RowsAhead<kAhead>& ahead, ScalesAhead* scales,
                                       int16_t* sums) {
  const uint8_t* rows[kRowsAtOnce];
  for (size_t i = 0; i < kRowsAtOnce; ++i) rows[i] = static_cast<const uint8_t*>(group_rows[i]) + stripe.begin / 2;
  const auto prefetch = [&](size_t byte) __attribute__((always_inline)) {
    ahead.Prefetch(byte);
    if (byte % (4 * (kBlock == 0 ? block : kBlock)) == 0) scales->PrefetchLine();
  };
  const size_t bytes = (stripe.end - stripe.begin) / 2;
  size_t byte = 0;
  if (kBlock == 32) {
    const uint32_t* eight_blocks = group_pairs[0];
    const auto add_two_blocks = [&](auto place) __attribute__((always_inline)) {
      constexpr int kPlace = decltype(place)::value;
      __m256i pairs[kRowsAtOnce / 2];
      for (size_t p = 0; p < kRowsAtOnce / 2; ++p) {
        const auto* eight = reinterpret_cast<const __m256i*>(eight_blocks + p * kMaxBlocks);
        pairs[p] = _mm256_shuffle_epi32(_mm256_load_si256(eight), kPlace * 0x55);
      }
      AddVector<kIsFirst>(rows, byte + kPlace * sizeof(__m256i), pairs, sums + kPlace * kVectorColumns);
    };
    for (; byte + 128 <= bytes; byte += 128, sums += 256, eight_blocks += 8) {
      prefetch(byte);
      add_two_blocks(Constant<0>());
      add_two_blocks(Constant<1>());
      prefetch(byte + 64);
      add_two_blocks(Constant<2>());
      add_two_blocks(Constant<3>());
    }
    if (byte < bytes) prefetch(byte), add_two_blocks(Constant<0>());
    if (byte + 32 < bytes) add_two_blocks(Constant<1>());
    if (byte + 64 < bytes) prefetch(byte + 64), add_two_blocks(Constant<2>());
  } else {
    const auto add = [&](size_t place) __attribute__((always_inline)) {
      const size_t b = BlockOf<kBlock>(2 * byte + place * kVectorColumns, block);
      __m256i pairs[kRowsAtOnce / 2];
      for (size_t p = 0; p < kRowsAtOnce / 2; ++p) pairs[p] = _mm256_set1_epi32(static_cast<int>(group_pairs[p][b]));
      AddVector<kIsFirst>(rows, byte + place * sizeof(__m256i), pairs, sums + place * kVectorColumns);
    };
    for (; byte + 64 <= bytes; byte += 64, sums += 2 * kVectorColumns) prefetch(byte), add(0), add(1);
    if (byte < bytes) prefetch(byte), add(0);
  }
}

// out += unit * (sums - 8 * sum of m), in the order of columns.
template <size_t kBlock>
__attribute__((noinline)) void Finish(const int16_t* sums, const Multipliers& multipliers, size_t columns, size_t block,
                                      const RowsAhead<4>& ahead, float* out) {
  for (size_t c = 0; c < columns; c += kVectorColumns) {
    if (c % 128 == 0) ahead.Prefetch(c / 2);
    const size_t first = BlockOf<kBlock>(c, block), second = kBlock == 32 ? first + 1 : first;
    const __m256 units[2] = {_mm256_broadcast_ss(multipliers.units + first),
                             _mm256_broadcast_ss(multipliers.units + second)};
    const __m128i first_sum = _mm_cvtsi32_si128(multipliers.sums[first]);
    const __m128i second_sum = _mm_cvtsi32_si128(multipliers.sums[second]);
    const __m256i excess =
        _mm256_slli_epi16(_mm256_set_m128i(_mm_broadcastw_epi16(second_sum), _mm_broadcastw_epi16(first_sum)), 3);
    const auto* from = reinterpret_cast<const __m256i*>(sums + c);
#pragma GCC unroll 2
    for (size_t half = 0; half < 2; ++half) {
      const __m256i even = _mm256_load_si256(from + 2 * half), odd = _mm256_load_si256(from + 2 * half + 1);
      const __m256i ordered[2] = {_mm256_sub_epi16(_mm256_unpacklo_epi16(even, odd), excess),
                                  _mm256_sub_epi16(_mm256_unpackhi_epi16(even, odd), excess)};
#pragma GCC unroll 2
      for (size_t j = 0; j < 2; ++j) {
        float* to = out + c + 16 * half + 8 * j;
        const __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_castsi256_si128(ordered[j])));
        const __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(_mm256_extracti128_si256(ordered[j], 1)));
        _mm256_storeu_ps(to, _mm256_fmadd_ps(low, units[0], _mm256_loadu_ps(to)));
        _mm256_storeu_ps(to + 32, _mm256_fmadd_ps(high, units[1], _mm256_loadu_ps(to + 32)));
      }
    }
  }
}

template <size_t kBlock>
void AddGroup(const RowGroup& group, const Multipliers& multipliers, Stripe stripe, float* out) {
  alignas(32) int16_t sums[kMaxStripe];
  const size_t columns = stripe.end - stripe.begin, first_byte = stripe.begin / 2;
  const void* const* next = group.rows + kRowsAhead + Pack8::kRowsAhead;
  ScalesAhead scales(group, stripe.begin / group.block, columns / group.block);
  const auto add = [&](size_t i, auto is_first, auto ahead) {
    constexpr size_t kAhead = decltype(ahead)::value;
    AddRows<decltype(is_first)::value, kBlock, kAhead>(group.rows + i, multipliers.pairs + i / 2, stripe, group.block,
                                                       {next, first_byte}, &scales, sums);
    next += kAhead;
  };
  add(0, Constant<true>(), Constant<3>());
  for (size_t i = kRowsAtOnce; i < group.count; i += kRowsAtOnce) {
    i / kRowsAtOnce % 2 == 0 ? add(i, Constant<false>(), Constant<3>()) : add(i, Constant<false>(), Constant<2>());
  }
  Finish<kBlock>(sums, multipliers, columns, group.block, {next, first_byte}, out + stripe.begin);
}

}  // namespace int4
}  // namespace
}  // namespace sparsecc
