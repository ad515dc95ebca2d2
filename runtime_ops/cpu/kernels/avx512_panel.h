// Panels with AVX-512: unpacking weights of each type, and the product of a few rows of values with four of them.
#pragma once

#include <type_traits>

#include "avx512_vectors.h"
#include "panels_ahead.h"
#include "portable.h"
#include "usual_panels.h"

namespace sparsecc {
namespace {
namespace panel {

static_assert(kPanelColumns == kLanes, "a vector holds the columns of a panel");

inline __m512 Sixteen(const float* row) { return Load(row); }
inline __m512 Sixteen(const uint16_t* row) { return Load(row); }
inline __m512 Sixteen(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)); }
inline __m512 Sixteen(const int8_t* row) { return Sixteen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row))); }
struct Int4 {
  uint8_t pair;
};
inline __m512 Sixteen(const Int4* row) {
  const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row)), half = _mm_set1_epi8(15);
  const __m128i even = _mm_and_si128(packed, half), odd = _mm_and_si128(_mm_srli_epi16(packed, 4), half);
  const __m128i eight = _mm_set1_epi8(8);
  return Sixteen(_mm_sub_epi8(_mm_xor_si128(_mm_unpacklo_epi8(even, odd), eight), eight));
}

inline __m512 Scaled(__m512 row, uint16_t half) {
  return _mm512_mul_ps(row, _mm512_broadcastss_ps(_mm_cvtph_ps(_mm_cvtsi32_si128(half))));
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
      __m512 weights16 = Sixteen(row + c / kPerElement);
      if constexpr (kIsQuantized) weights16 = Scaled(weights16, *ScalesAt(weights, channel, stripe.begin + c));
      _mm512_storeu_ps(panels + (c * count + k * kPanelColumns), weights16);
    }
  }
}

// The panels that are multiplied together, so that a value that has been read once is multiplied four times. Of six
// rows that takes 24 sums in registers; with a single panel, what is left of the last columns, sums wait for each
// other.
constexpr size_t kPanels = 4;

template <size_t kRows, size_t kCount>
__attribute__((noinline)) void MultiplyRows(const PanelProduct& product) {
  __m512 sums[kRows][kCount];
#pragma GCC unroll 6
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (size_t p = 0; p < kCount; ++p) {
      sums[r][p] = _mm512_setzero_ps();
      _mm_prefetch(product.out + r * product.out_stride + p * kLanes, _MM_HINT_T0);
    }
  }
  const float *values = product.values, *panels = product.panels, *const end = values + product.count;
  const size_t stride = product.values_stride, panel_size = product.count * kPanelColumns;
  PanelsAhead ahead = product.ahead;
  const auto add_channel = [&]() __attribute__((always_inline)) {
    __m512 weights[kCount];
#pragma GCC unroll 4
    for (size_t p = 0; p < kCount; ++p) weights[p] = _mm512_loadu_ps(panels + p * panel_size);
#pragma GCC unroll 6
    for (size_t r = 0; r < kRows; ++r) {
      const __m512 value = _mm512_set1_ps(values[r * stride]);
#pragma GCC unroll 4
      for (size_t p = 0; p < kCount; ++p) sums[r][p] = _mm512_fmadd_ps(value, weights[p], sums[r][p]);
    }
    ++values;
    panels += kPanelColumns;
  };
  for (size_t fetches = product.count / kFetchChannels; fetches > 0; --fetches) {
    FetchLines(ahead);
#pragma GCC unroll 2
    for (size_t k = 0; k < kFetchChannels; ++k) add_channel();
  }
  while (values != end) add_channel();
  product.ahead = ahead;
  const __mmask16 last = FirstLanes(product.columns - (kCount - 1) * kLanes);
#pragma GCC unroll 6
  for (size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (size_t p = 0; p < kCount; ++p) {
      float* out = product.out + r * product.out_stride + p * kLanes;
      const __mmask16 lanes = p + 1 < kCount ? static_cast<__mmask16>(0xFFFF) : last;
      _mm512_mask_storeu_ps(out, lanes, _mm512_add_ps(LoadLanes(out, lanes), sums[r][p]));
    }
  }
}

template <size_t kCount>
void MultiplyTogether(const PanelProduct& product) {
  switch (product.rows) {
    case 6:
      return MultiplyRows<6, kCount>(product);
    case 5:
      return MultiplyRows<5, kCount>(product);
    case 4:
      return MultiplyRows<4, kCount>(product);
    case 3:
      return MultiplyRows<3, kCount>(product);
    case 2:
      return MultiplyRows<2, kCount>(product);
    case 1:
      return MultiplyRows<1, kCount>(product);
  }
}

void Multiply(const PanelProduct& product) {
  switch ((product.columns + kPanelColumns - 1) / kPanelColumns) {
    case 4:
      return MultiplyTogether<4>(product);
    case 3:
      return MultiplyTogether<3>(product);
    case 2:
      return MultiplyTogether<2>(product);
    case 1:
      return MultiplyTogether<1>(product);
  }
}

}  // namespace panel
}  // namespace
}  // namespace sparsecc
