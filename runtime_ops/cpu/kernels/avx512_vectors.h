// Sixteen weights as floats, whatever type they have in memory.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

namespace sparsecc {
namespace {

constexpr size_t kLanes = 16;

inline __m512 Load(const float* weights) { return _mm512_loadu_ps(weights); }
inline __m512 Load(const uint16_t* halves) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(halves)));
}

// The first `count` of 16 lanes; all where there are more.
inline __mmask16 FirstLanes(size_t count) {
  return static_cast<__mmask16>(count < kLanes ? (1u << count) - 1 : 0xFFFFu);
}

// The first weights, and 0 in the other lanes, of which nothing is read.
inline __m512 LoadLanes(const float* weights, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, weights); }
inline __m512 LoadLanes(const uint16_t* halves, __mmask16 lanes) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(lanes, halves));
}

}  // namespace
}  // namespace sparsecc
