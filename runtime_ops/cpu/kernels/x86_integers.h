// Panels of quantized weights as integers, on x86: how they are unpacked, whatever the width of vectors.
//
// Included by units that are compiled for AVX2 or more: everything here has internal linkage.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "portable.h"

namespace sparsecc {
namespace {
namespace integers {

constexpr size_t kPairColumns = 2 * kPanelColumns;  // integers of a pair of channels in a panel

struct Int8 {
  static constexpr size_t kPerByte = 1;
  static __m128i Sixteen(const uint8_t* bytes) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(bytes)); }
};

struct Int4 {  // times kInt4Factor
  static constexpr size_t kPerByte = 2;
  static __m128i Sixteen(const uint8_t* bytes) {
    static_assert(kInt4Factor == 16, "the upper half of a byte is its int4 times 16");
    const __m128i packed = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes));
    const __m128i upper = _mm_set1_epi8(static_cast<char>(0xF0));
    return _mm_unpacklo_epi8(_mm_and_si128(_mm_slli_epi16(packed, 4), upper), _mm_and_si128(packed, upper));
  }
};

// Store writes the 16 pairs of two channels' bytes as integers of 16 bits.
template <typename Weight, auto Store>
void Unpack(const Weights& weights, const int64_t* indices, size_t count, Stripe stripe, int16_t* panels) {
  const size_t pairs = (count + 1) / 2, columns = stripe.end - stripe.begin;
  const size_t whole = columns / kPanelColumns * kPanelColumns;
  const auto row = [&](size_t k) __attribute__((always_inline)) {
    return static_cast<const uint8_t*>(RowAt(weights, static_cast<size_t>(indices[k]), stripe.begin));
  };
  for (size_t k = 0; k < count; k += 2) {
    const uint8_t *even = row(k), *odd = k + 1 < count ? row(k + 1) : nullptr;
    for (size_t c = 0; c < whole; c += kPanelColumns) {
      const __m128i second = odd == nullptr ? _mm_setzero_si128() : Weight::Sixteen(odd + c / Weight::kPerByte);
      Store(Weight::Sixteen(even + c / Weight::kPerByte), second, panels + c * 2 * pairs + k / 2 * kPairColumns);
    }
  }
  if (whole < columns) {
    const Stripe rest = {stripe.begin + whole, stripe.end};
    UnpackIntegersPortable(weights, indices, count, rest, panels + whole * 2 * pairs);
  }
}

}  // namespace integers
}  // namespace
}  // namespace sparsecc
