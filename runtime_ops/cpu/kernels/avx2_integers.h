// Panels of quantized weights as integers, with AVX2: vpmaddwd multiplies two channels' weights by their multipliers
// and adds both products, twice as many as an instruction for floats; the sums are added by units that do not multiply.
#pragma once

#include <type_traits>

#include "avx2_panel.h"

namespace sparsecc {
namespace {
namespace integers {

constexpr size_t kPairColumns = 2 * kPanelColumns;  // integers of a pair of channels in a panel

// Sixteen int8, and sixteen int4 times kInt4Factor.
inline __m128i SixteenBytes(const int8_t* row) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row)); }
inline __m128i SixteenBytes(const panel::Int4* row) {
  static_assert(kInt4Factor == 16, "the upper half of a byte is its int4 times 16");
  const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row));
  const __m128i upper = _mm_set1_epi8(static_cast<char>(0xF0));
  return _mm_unpacklo_epi8(_mm_and_si128(_mm_slli_epi16(packed, 4), upper), _mm_and_si128(packed, upper));
}

template <typename Weight>
void Unpack(const Weights& weights, const int64_t* indices, size_t count, Stripe stripe, int16_t* panels) {
  constexpr size_t kPerElement = std::is_same_v<Weight, panel::Int4> ? 2 : 1;
  const size_t pairs = (count + 1) / 2, columns = stripe.end - stripe.begin;
  const size_t whole = columns / kPanelColumns * kPanelColumns;
  const auto row = [&](size_t k) __attribute__((always_inline)) {
    return static_cast<const Weight*>(RowAt(weights, static_cast<size_t>(indices[k]), stripe.begin));
  };
  for (size_t k = 0; k < count; k += 2) {
    const Weight *even = row(k), *odd = k + 1 < count ? row(k + 1) : nullptr;
    for (size_t c = 0; c < whole; c += kPanelColumns) {
      const __m128i first = SixteenBytes(even + c / kPerElement);
      const __m128i second = odd == nullptr ? _mm_setzero_si128() : SixteenBytes(odd + c / kPerElement);
      auto* to = reinterpret_cast<__m256i*>(panels + c * 2 * pairs + k / 2 * kPairColumns);
      _mm256_store_si256(to, _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(first, second)));
      _mm256_store_si256(to + 1, _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(first, second)));
    }
  }
  if (whole < columns) {
    const Stripe rest = {stripe.begin + whole, stripe.end};
    UnpackIntegersPortable(weights, indices, count, rest, panels + whole * 2 * pairs);
  }
}

inline void AddTo(float* out, __m256i sum, __m256 unit) {
  _mm256_storeu_ps(out, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), unit, _mm256_loadu_ps(out)));
}

template <size_t kRows>
__attribute__((noinline)) void MultiplyRows(const int16_t* multipliers, const IntegerProduct& product, size_t column) {
  __m256i sums[kRows][2];
#pragma GCC unroll 6
  for (size_t r = 0; r < kRows; ++r) sums[r][0] = sums[r][1] = _mm256_setzero_si256();
  const auto* panel = reinterpret_cast<const __m256i*>(product.panels + column * 2 * product.pairs);
  for (size_t pair = 0; pair < product.pairs; ++pair) {
    const __m256i first = _mm256_load_si256(panel + 2 * pair), second = _mm256_load_si256(panel + 2 * pair + 1);
#pragma GCC unroll 6
    for (size_t r = 0; r < kRows; ++r) {
      int32_t both;
      __builtin_memcpy(&both, multipliers + (pair * kPanelRows + r) * 2, sizeof(both));
      const __m256i multiplier = _mm256_set1_epi32(both);
      sums[r][0] = _mm256_add_epi32(sums[r][0], _mm256_madd_epi16(first, multiplier));
      sums[r][1] = _mm256_add_epi32(sums[r][1], _mm256_madd_epi16(second, multiplier));
      asm volatile("" : "+x"(sums[r][0]), "+x"(sums[r][1]));  // else GCC keeps all products, and spills the sums
    }
  }
  const size_t columns = product.columns - column;
#pragma GCC unroll 6
  for (size_t r = 0; r < kRows; ++r) {
    float* out = product.out + r * product.out_stride + column;
    const __m256 unit = _mm256_set1_ps(product.row_units[r] * product.block_unit);
    if (columns >= kPanelColumns) {
      AddTo(out, sums[r][0], unit);
      AddTo(out + kLanes, sums[r][1], unit);
    } else {
      alignas(32) float last[kPanelColumns] = {};
      AddTo(last, sums[r][0], unit);
      AddTo(last + kLanes, sums[r][1], unit);
      for (size_t c = 0; c < columns; ++c) out[c] += last[c];
    }
  }
}

// m[k, r] = round(values[k, r] * scales[k] / 2^15). Four pairs of channels, each for six rows, make three vectors.
inline void FillMultipliers(const IntegerProduct& product, int16_t* multipliers) {
  static_assert(kPanelRows == 6 && kTilePairs % 4 == 0, "three whole vectors for four pairs");
  const __m256i pair_of_lane[3] = {_mm256_setr_epi32(0, 0, 0, 0, 0, 0, 1, 1), _mm256_setr_epi32(1, 1, 1, 1, 2, 2, 2, 2),
                                   _mm256_setr_epi32(2, 2, 3, 3, 3, 3, 3, 3)};
  for (size_t pair = 0; pair < product.pairs; pair += 4) {
    const __m128i four = _mm_load_si128(reinterpret_cast<const __m128i*>(product.scales + 2 * pair));
    const size_t first = pair * kPanelRows * 2;
#pragma GCC unroll 3
    for (size_t j = 0; j < 3; ++j) {
      const __m256i scales = _mm256_permutevar8x32_epi32(_mm256_castsi128_si256(four), pair_of_lane[j]);
      const __m256i values = _mm256_load_si256(reinterpret_cast<const __m256i*>(product.values + first + 16 * j));
      _mm256_store_si256(reinterpret_cast<__m256i*>(multipliers + first + 16 * j), _mm256_mulhrs_epi16(values, scales));
    }
  }
}

void Multiply(const IntegerProduct& product) {
  alignas(32) int16_t multipliers[kTilePairs * kPanelRows * 2];
  FillMultipliers(product, multipliers);
  constexpr decltype(&MultiplyRows<1>) kByRows[] = {MultiplyRows<1>, MultiplyRows<2>, MultiplyRows<3>,
                                                    MultiplyRows<4>, MultiplyRows<5>, MultiplyRows<6>};
  for (size_t column = 0; column < product.columns; column += kPanelColumns) {
    kByRows[product.rows - 1](multipliers, product, column);
  }
}

}  // namespace integers
}  // namespace
}  // namespace sparsecc
