// Eight weights as floats, whatever type they have in memory.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace sparsecc {
namespace {

constexpr size_t kLanes = 8;

inline __m256 Load(const float* weights) { return _mm256_loadu_ps(weights); }
inline __m256 Load(const uint16_t* halves) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(halves)));
}

inline __m256i FirstLanes(size_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// The first `count` weights, and 0; nothing past them is read.
inline __m256 LoadFirst(const float* weights, size_t count) { return _mm256_maskload_ps(weights, FirstLanes(count)); }
inline __m256 LoadFirst(const uint16_t* halves, size_t count) {
  alignas(16) uint16_t first[kLanes] = {};
  for (size_t i = 0; i < count; ++i) first[i] = halves[i];
  return Load(first);
}

}  // namespace
}  // namespace sparsecc
