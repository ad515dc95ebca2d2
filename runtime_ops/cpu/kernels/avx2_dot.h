// Dot products with AVX2. Quantized rows are multiplied in integers: maddubs wants one side unsigned, which for int8 is
// the weight's magnitude, its sign going to the value, and for int4 the weight plus 8, the excess of 8 * sum of the
// values being taken off at the end.
#pragma once

#include "avx2_vectors.h"
#include "dot.h"
#include "portable.h"

namespace sparsecc {
namespace {
namespace dot {

constexpr size_t kChunksOfStrip = kDotStrip / kDotChunk;

inline float Sum(__m256 lanes) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}

inline void Prefetch(const void* row, size_t byte) { _mm_prefetch(static_cast<const char*>(row) + byte, _MM_HINT_T0); }

template <typename Weight>
void Floats(const DotValues& values, const DotGroup& group, float* products) {
  constexpr size_t kStep = 2 * kLanes, kLine = 64 / sizeof(Weight);
  const Weight* rows[kDotRows];
  for (size_t i = 0; i < kDotRows; ++i) rows[i] = static_cast<const Weight*>(group.rows[i]);
  __m256 sums[kDotRows][2];
  for (auto& pair : sums) pair[0] = pair[1] = _mm256_setzero_ps();
  size_t k = 0;
  for (; k + kStep <= values.count; k += kStep) {
    const __m256 first = _mm256_loadu_ps(values.exact + k), second = _mm256_loadu_ps(values.exact + k + kLanes);
#pragma GCC unroll 4
    for (size_t i = 0; i < kDotRows; ++i) {
      if (k % kLine == 0) Prefetch(group.rows[kDotRows + i], k * sizeof(Weight));
      sums[i][0] = _mm256_fmadd_ps(first, Load(rows[i] + k), sums[i][0]);
      sums[i][1] = _mm256_fmadd_ps(second, Load(rows[i] + k + kLanes), sums[i][1]);
    }
  }
  for (; k < values.count; k += kLanes) {
    const size_t left = values.count - k < kLanes ? values.count - k : kLanes;
    const __m256 last = LoadFirst(values.exact + k, left);
    for (size_t i = 0; i < kDotRows; ++i) {
      sums[i][0] = _mm256_fmadd_ps(last, LoadFirst(rows[i] + k, left), sums[i][0]);
    }
  }
  for (size_t i = 0; i < group.count; ++i) products[i] = Sum(_mm256_add_ps(sums[i][0], sums[i][1]));
}

// The scales of a strip's chunks times the units of the values; 0 past the last chunk.
inline __m256 CombinedScales(const DotValues& values, const DotGroup& group, size_t row, size_t chunk) {
  const size_t chunks = (values.count + kDotChunk - 1) / kDotChunk;
  const __m256 units = _mm256_loadu_ps(values.units + chunk);
  if (chunk + kChunksOfStrip <= chunks) {
    if (group.block == kDotChunk) return _mm256_mul_ps(units, Load(group.scales[row] + chunk));
    if (group.block == 2 * kDotChunk) {
      const __m128i four = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(group.scales[row] + chunk / 2));
      return _mm256_mul_ps(units, _mm256_cvtph_ps(_mm_unpacklo_epi16(four, four)));
    }
  }
  alignas(16) uint16_t scales[kChunksOfStrip] = {};
  for (size_t i = 0; i < kChunksOfStrip && chunk + i < chunks; ++i) {
    scales[i] = group.scales[row][(chunk + i) * kDotChunk / group.block];
  }
  return _mm256_mul_ps(units, Load(scales));
}

// The first `bytes` of 32, and 0; nothing past them is read.
inline __m256i LoadBytes(const uint8_t* from, size_t bytes) {
  if (bytes >= sizeof(__m256i)) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  alignas(32) uint8_t first[sizeof(__m256i)] = {};
  for (size_t i = 0; i < bytes; ++i) first[i] = from[i];
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(first));
}

inline __m256i LoadIntegers(const int8_t* integers) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(integers));
}

inline __m256 ToFloats(__m256i pairs) { return _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1))); }

template <int kPlace>
inline __attribute__((always_inline)) void AddInt8Chunk(const DotValues& values, const uint8_t* row, size_t first,
                                                        __m256 scales, __m256* sum) {
  const size_t k = first + kPlace * kDotChunk;
  if (k >= values.count) return;
  const __m256i weights = LoadBytes(row + k, values.count - k);
  const __m256i signed_values = _mm256_sign_epi8(LoadIntegers(values.integers + k), weights);
  const __m256 terms = ToFloats(_mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed_values));
  *sum = _mm256_fmadd_ps(terms, _mm256_permutevar8x32_ps(scales, _mm256_set1_epi32(kPlace)), *sum);
}

inline void Int8(const DotValues& values, const DotGroup& group, float* products) {
  if (values.integers == nullptr) return DotPortable(kInt8, values, group, products);
  for (size_t i = 0; i < group.count; ++i) {
    const auto* row = static_cast<const uint8_t*>(group.rows[i]);
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (size_t k = 0; k < values.count; k += kDotStrip) {
      for (size_t byte = k; byte < k + kDotStrip; byte += 64) Prefetch(group.rows[kDotRows + i], byte);
      const __m256 scales = CombinedScales(values, group, i, k / kDotChunk);
      AddInt8Chunk<0>(values, row, k, scales, sums);
      AddInt8Chunk<1>(values, row, k, scales, sums + 1);
      AddInt8Chunk<2>(values, row, k, scales, sums);
      AddInt8Chunk<3>(values, row, k, scales, sums + 1);
      AddInt8Chunk<4>(values, row, k, scales, sums);
      AddInt8Chunk<5>(values, row, k, scales, sums + 1);
      AddInt8Chunk<6>(values, row, k, scales, sums);
      AddInt8Chunk<7>(values, row, k, scales, sums + 1);
    }
    products[i] = Sum(_mm256_add_ps(sums[0], sums[1]));
  }
}

// Adds two chunks, whose scales are those at 2 * kPlace and the next one: the first chunk's bytes are the lower half.
template <int kPlace>
inline __attribute__((always_inline)) void AddInt4Chunks(const DotValues& values, const uint8_t* row, size_t first,
                                                         __m256 scales, __m256* sum) {
  const size_t k = first + 2 * kPlace * kDotChunk;
  if (k >= values.count) return;
  const __m256i half = _mm256_set1_epi8(15);
  const __m256i bytes =
      _mm256_xor_si256(LoadBytes(row + k / 2, (values.count - k) / 2), _mm256_set1_epi8(static_cast<char>(0x88)));
  const __m256i even = _mm256_maddubs_epi16(_mm256_and_si256(bytes, half), LoadIntegers(values.integers + k));
  const __m256i odd = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), half),
                                           LoadIntegers(values.integers + k + kDotChunk));
  const __m256i places = _mm256_setr_epi32(2 * kPlace, 2 * kPlace, 2 * kPlace, 2 * kPlace, 2 * kPlace + 1,
                                           2 * kPlace + 1, 2 * kPlace + 1, 2 * kPlace + 1);
  *sum = _mm256_fmadd_ps(ToFloats(_mm256_add_epi16(even, odd)), _mm256_permutevar8x32_ps(scales, places), *sum);
}

inline void Int4(const DotValues& values, const DotGroup& group, float* products) {
  if (values.integers == nullptr) return DotPortable(kInt4, values, group, products);
  for (size_t i = 0; i < group.count; ++i) {
    const auto* row = static_cast<const uint8_t*>(group.rows[i]);
    __m256 sums[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()}, excess = _mm256_setzero_ps();
    for (size_t k = 0; k < values.count; k += kDotStrip) {
      Prefetch(group.rows[kDotRows + i], k / 2);
      Prefetch(group.rows[kDotRows + i], k / 2 + 64);
      const __m256 scales = CombinedScales(values, group, i, k / kDotChunk);
      excess = _mm256_fmadd_ps(scales, _mm256_loadu_ps(values.sums + k / kDotChunk), excess);
      AddInt4Chunks<0>(values, row, k, scales, sums);
      AddInt4Chunks<1>(values, row, k, scales, sums + 1);
      AddInt4Chunks<2>(values, row, k, scales, sums);
      AddInt4Chunks<3>(values, row, k, scales, sums + 1);
    }
    const __m256 sum = _mm256_add_ps(sums[0], sums[1]);
    products[i] = Sum(_mm256_fnmadd_ps(excess, _mm256_set1_ps(8), sum));
  }
}

}  // namespace dot
}  // namespace
}  // namespace sparsecc
