// Panels with AVX2: unpacking weights of each type, and the product of a few rows of values with a panel.
#pragma once

#include <type_traits>

#include "avx2_vectors.h"
#include "panels_ahead.h"
#include "portable.h"
#include "usual_panels.h"

namespace sparsecc {
namespace {
namespace panel {

static_assert(kPanelColumns == 2 * kLanes, "two vectors of columns are kept in registers");

struct Vectors {
  __m256 first, second;
};

inline Vectors Sixteen(const float* row) { return {Load(row), Load(row + kLanes)}; }
inline Vectors Sixteen(const uint16_t* row) { return {Load(row), Load(row + kLanes)}; }
inline Vectors Sixteen(const int8_t* row) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
struct Int4 {
  uint8_t pair;
};
inline Vectors Sixteen(const Int4* row) {
  const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row)), half = _mm_set1_epi8(15);
  const __m128i even = _mm_and_si128(packed, half), odd = _mm_and_si128(_mm_srli_epi16(packed, 4), half);
  const __m128i eight = _mm_set1_epi8(8);
  const __m128i bytes = _mm_sub_epi8(_mm_xor_si128(_mm_unpacklo_epi8(even, odd), eight), eight);
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}

inline Vectors Scaled(Vectors row, uint16_t half) {
  const __m256 scale = _mm256_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(half)));
  return {_mm256_mul_ps(row.first, scale), _mm256_mul_ps(row.second, scale)};
}

template <typename Weight>
void Unpack(const Weights& weights, const int64_t* indices, size_t count, Channels channels, Stripe stripe,
            float* panels) {
  if (!IsUsual(weights, stripe)) return UnpackPanelsPortable(weights, indices, count, channels, stripe, panels);
  constexpr bool kIsQuantized = sizeof(Weight) == 1;
  constexpr size_t kPerElement = std::is_same_v<Weight, Int4> ? 2 : 1;
  for (size_t k = channels.begin; k < channels.end; ++k) {
    const auto channel = static_cast<size_t>(indices[k]);
    const auto* row = static_cast<const Weight*>(RowAt(weights, channel, stripe.begin));
    for (size_t c = 0; c < stripe.end - stripe.begin; c += kPanelColumns) {
      Vectors weights16 = Sixteen(row + c / kPerElement);
      if constexpr (kIsQuantized) weights16 = Scaled(weights16, *ScalesAt(weights, channel, stripe.begin + c));
      float* to = panels + (c * count + k * kPanelColumns);
      _mm256_store_ps(to, weights16.first);
      _mm256_store_ps(to + kLanes, weights16.second);
    }
  }
}

template <size_t kRows>
__attribute__((noinline)) void MultiplyRows(const PanelProduct& product) {
  __m256 sums[kRows][2];
#pragma GCC unroll 6
  for (size_t r = 0; r < kRows; ++r) {
    sums[r][0] = sums[r][1] = _mm256_setzero_ps();
    _mm_prefetch(product.out + r * product.out_stride, _MM_HINT_T0);
  }
  const float *values = product.values, *panel = product.panels, *const end = values + product.count;
  const size_t stride = product.values_stride;
  PanelsAhead ahead = product.ahead;
  const auto add_channel = [&]() __attribute__((always_inline)) {
    const __m256 first = _mm256_load_ps(panel), second = _mm256_load_ps(panel + kLanes);
#pragma GCC unroll 6
    for (size_t r = 0; r < kRows; ++r) {
      const __m256 value = _mm256_broadcast_ss(values + r * stride);
      sums[r][0] = _mm256_fmadd_ps(value, first, sums[r][0]);
      sums[r][1] = _mm256_fmadd_ps(value, second, sums[r][1]);
    }
    ++values;
    panel += kPanelColumns;
  };
  for (size_t fetches = product.count / kFetchChannels; fetches > 0; --fetches) {
    FetchLines(ahead);
#pragma GCC unroll 4
    for (size_t k = 0; k < kFetchChannels; ++k) add_channel();
  }
  while (values != end) add_channel();
  product.ahead = ahead;
#pragma GCC unroll 6
  for (size_t r = 0; r < kRows; ++r) {
    float* out = product.out + r * product.out_stride;
    if (product.columns == kPanelColumns) {
      _mm256_storeu_ps(out, _mm256_add_ps(_mm256_loadu_ps(out), sums[r][0]));
      _mm256_storeu_ps(out + kLanes, _mm256_add_ps(_mm256_loadu_ps(out + kLanes), sums[r][1]));
    } else {
      alignas(32) float last[kPanelColumns];
      _mm256_store_ps(last, sums[r][0]);
      _mm256_store_ps(last + kLanes, sums[r][1]);
      for (size_t c = 0; c < product.columns; ++c) out[c] += last[c];
    }
  }
}

void Multiply(const PanelProduct& product) {
  switch (product.rows) {
    case 6:
      return MultiplyRows<6>(product);
    case 5:
      return MultiplyRows<5>(product);
    case 4:
      return MultiplyRows<4>(product);
    case 3:
      return MultiplyRows<3>(product);
    case 2:
      return MultiplyRows<2>(product);
    case 1:
      return MultiplyRows<1>(product);
  }
}

}  // namespace panel
}  // namespace
}  // namespace sparsecc
