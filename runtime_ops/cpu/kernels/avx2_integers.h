// Panels of quantized weights as integers, with AVX2: vpmaddwd multiplies two channels' weights by their multipliers
// and adds both products, twice as many as an instruction for floats; the sums are added by units that do not multiply.
#pragma once

#include "avx2_vectors.h"
#include "x86_integers.h"

namespace sparsecc {
namespace {
namespace integers {

inline void StorePairs(__m128i even, __m128i odd, int16_t* to) {
  auto* vectors = reinterpret_cast<__m256i*>(to);
  _mm256_store_si256(vectors, _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(even, odd)));
  _mm256_store_si256(vectors + 1, _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(even, odd)));
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
