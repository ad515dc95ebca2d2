// Panels of quantized weights as integers, with AVX-512 VNNI: vpdpwssd multiplies two channels' weights by their
// multipliers and adds both products to a sum, twice as many as an instruction for floats.
#pragma once

#include "avx512_vectors.h"
#include "x86_integers.h"

namespace sparsecc {
namespace {
namespace integers {

inline void StorePairs(__m128i even, __m128i odd, int16_t* to) {
  const __m256i pairs = _mm256_set_m128i(_mm_unpackhi_epi8(even, odd), _mm_unpacklo_epi8(even, odd));
  _mm512_store_si512(to, _mm512_cvtepi8_epi16(pairs));
}

// Some rows times kPanels panels.
template <size_t kRows, size_t kPanels>
__attribute__((noinline)) void MultiplyRows(const int16_t* multipliers, const IntegerProduct& product, size_t column) {
  __m512i sums[kPanels][kRows];
#pragma GCC unroll 6
  for (size_t r = 0; r < kRows; ++r) {
    for (size_t j = 0; j < kPanels; ++j) sums[j][r] = _mm512_setzero_si512();
  }
  const int16_t* panels = product.panels + column * 2 * product.pairs;
  for (size_t pair = 0; pair < product.pairs; ++pair) {
    __m512i weights[kPanels];
#pragma GCC unroll 2
    for (size_t j = 0; j < kPanels; ++j) {
      weights[j] = _mm512_load_si512(panels + (j * product.pairs + pair) * kPairColumns);
    }
#pragma GCC unroll 6
    for (size_t r = 0; r < kRows; ++r) {
      int32_t both;
      __builtin_memcpy(&both, multipliers + (pair * kPanelRows + r) * 2, sizeof(both));
      const __m512i multiplier = _mm512_set1_epi32(both);
#pragma GCC unroll 2
      for (size_t j = 0; j < kPanels; ++j) {
        sums[j][r] = _mm512_dpwssd_epi32(sums[j][r], weights[j], multiplier);
        asm volatile("" : "+v"(sums[j][r]));  // else GCC copies the sums from and to other registers
      }
    }
  }
#pragma GCC unroll 2
  for (size_t j = 0; j < kPanels; ++j) {
    const __mmask16 lanes = FirstLanes(product.columns - column - j * kPanelColumns);
#pragma GCC unroll 6
    for (size_t r = 0; r < kRows; ++r) {
      float* out = product.out + r * product.out_stride + column + j * kPanelColumns;
      const __m512 unit = _mm512_set1_ps(product.row_units[r] * product.block_unit);
      const __m512 sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[j][r]), unit, LoadLanes(out, lanes));
      _mm512_mask_storeu_ps(out, lanes, sum);
    }
  }
}

// m[k, r] = round(values[k, r] * scales[k] / 2^15). Eight pairs of channels, each for six rows, make three vectors.
inline void FillMultipliers(const IntegerProduct& product, int16_t* multipliers) {
  static_assert(kPanelRows == 6 && kTilePairs % 8 == 0, "three whole vectors for eight pairs");
  const __m512i pair_of_lane[3] = {_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2),
                                   _mm512_setr_epi32(2, 2, 3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 5, 5),
                                   _mm512_setr_epi32(5, 5, 5, 5, 6, 6, 6, 6, 6, 6, 7, 7, 7, 7, 7, 7)};
  for (size_t pair = 0; pair < product.pairs; pair += 8) {
    const __m256i eight = _mm256_load_si256(reinterpret_cast<const __m256i*>(product.scales + 2 * pair));
    const size_t first = pair * kPanelRows * 2;
#pragma GCC unroll 3
    for (size_t j = 0; j < 3; ++j) {
      const __m512i scales = _mm512_permutexvar_epi32(pair_of_lane[j], _mm512_castsi256_si512(eight));
      const __m512i values = _mm512_load_si512(product.values + first + 32 * j);
      _mm512_store_si512(multipliers + first + 32 * j, _mm512_mulhrs_epi16(values, scales));
    }
  }
}

template <size_t kPanels>
constexpr decltype(&MultiplyRows<1, kPanels>) kMultiplyRows[] = {MultiplyRows<1, kPanels>, MultiplyRows<2, kPanels>,
                                                                 MultiplyRows<3, kPanels>, MultiplyRows<4, kPanels>,
                                                                 MultiplyRows<5, kPanels>, MultiplyRows<6, kPanels>};

void Multiply(const IntegerProduct& product) {
  alignas(64) int16_t multipliers[kTilePairs * kPanelRows * 2];
  FillMultipliers(product, multipliers);
  size_t column = 0;
  for (; column + kPanelColumns < product.columns; column += 2 * kPanelColumns) {
    kMultiplyRows<2>[product.rows - 1](multipliers, product, column);
  }
  if (column < product.columns) kMultiplyRows<1>[product.rows - 1](multipliers, product, column);
}

}  // namespace integers
}  // namespace
}  // namespace sparsecc
