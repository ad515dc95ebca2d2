// Panels with NEON: unpacking weights of each type, and the product of a few rows of values with a panel.
#pragma once

#include <type_traits>

#include "neon_vectors.h"
#include "panels_ahead.h"
#include "portable.h"
#include "usual_panels.h"

namespace sparsecc {
namespace {
namespace panel {

static_assert(kPanelColumns == 4 * kLanes, "four vectors of columns are kept in registers");

struct Vectors {
  float32x4_t of[4];
};

inline Vectors Sixteen(const float* row) { return {{Load(row), Load(row + 4), Load(row + 8), Load(row + 12)}}; }
inline Vectors Sixteen(const uint16_t* row) { return {{Load(row), Load(row + 4), Load(row + 8), Load(row + 12)}}; }
inline Vectors Sixteen(int8x8_t first, int8x8_t second) {
  const Eight low = ToFloats(vmovl_s8(first)), high = ToFloats(vmovl_s8(second));
  return {{low.low, low.high, high.low, high.high}};
}
inline Vectors Sixteen(const int8_t* row) { return Sixteen(vld1_s8(row), vld1_s8(row + 8)); }
struct Int4 {
  int8_t pair;
};
inline Vectors Sixteen(const Int4* row) {
  const int8x8_t bytes = vld1_s8(&row->pair), even = vshr_n_s8(vshl_n_s8(bytes, 4), 4), odd = vshr_n_s8(bytes, 4);
  return Sixteen(vzip1_s8(even, odd), vzip2_s8(even, odd));
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
      const Vectors weights16 = Sixteen(row + c / kPerElement);
      const float scale = kIsQuantized ? HalfToFloat(*ScalesAt(weights, channel, stripe.begin + c)) : 1.0f;
      float* to = panels + (c * count + k * kPanelColumns);
      for (size_t j = 0; j < 4; ++j) {
        vst1q_f32(to + j * kLanes, kIsQuantized ? vmulq_n_f32(weights16.of[j], scale) : weights16.of[j]);
      }
    }
  }
}

// Adds a channel's row of the panel, times the value of each row of values, which is in one lane of a vector: scalars
// would take a register each, and 24 sums leave only eight.
template <size_t kLane, size_t kRows>
__attribute__((always_inline)) inline void AddChannel(const float32x4_t* values, const float* row,
                                                      float32x4_t (*sums)[4]) {
#pragma GCC unroll 4
  for (size_t j = 0; j < 4; ++j) {
    const float32x4_t weights = vld1q_f32(row + j * kLanes);
#pragma GCC unroll 6
    for (size_t r = 0; r < kRows; ++r) sums[r][j] = vfmaq_laneq_f32(sums[r][j], weights, values[r], kLane);
  }
}

template <size_t kRows>
__attribute__((always_inline)) inline void AddFourChannels(const float* values, size_t stride, const float* panel,
                                                           float32x4_t (*sums)[4]) {
  float32x4_t four[kRows];
#pragma GCC unroll 6
  for (size_t r = 0; r < kRows; ++r) four[r] = vld1q_f32(values + r * stride);
  AddChannel<0, kRows>(four, panel, sums);
  AddChannel<1, kRows>(four, panel + kPanelColumns, sums);
  AddChannel<2, kRows>(four, panel + 2 * kPanelColumns, sums);
  AddChannel<3, kRows>(four, panel + 3 * kPanelColumns, sums);
}

template <size_t kRows>
__attribute__((noinline)) void MultiplyRows(const PanelProduct& product) {
  float32x4_t sums[kRows][4];
#pragma GCC unroll 6
  for (size_t r = 0; r < kRows; ++r) {
    __builtin_prefetch(product.out + r * product.out_stride);
    for (size_t j = 0; j < 4; ++j) sums[r][j] = vdupq_n_f32(0);
  }
  const float *values = product.values, *panel = product.panels, *const end = values + product.count;
  const size_t stride = product.values_stride;
  for (size_t fetches = product.count / kFetchChannels; fetches > 0; --fetches) {
    static_assert(kFetchChannels % 4 == 0, "as many as a vector has lanes are added at once");
    FetchLines(product.ahead);
    for (size_t k = 0; k < kFetchChannels; k += 4, values += 4, panel += 4 * kPanelColumns) {
      AddFourChannels<kRows>(values, stride, panel, sums);
    }
  }
  for (; values != end; ++values, panel += kPanelColumns) {
    float32x4_t one[kRows];
#pragma GCC unroll 6
    for (size_t r = 0; r < kRows; ++r) one[r] = vld1q_dup_f32(values + r * stride);
    AddChannel<0, kRows>(one, panel, sums);
  }
#pragma GCC unroll 6
  for (size_t r = 0; r < kRows; ++r) {
    float* out = product.out + r * product.out_stride;
    if (product.columns == kPanelColumns) {
      for (size_t j = 0; j < 4; ++j) vst1q_f32(out + j * kLanes, vaddq_f32(vld1q_f32(out + j * kLanes), sums[r][j]));
    } else {
      float last[kPanelColumns];
      for (size_t j = 0; j < 4; ++j) vst1q_f32(last + j * kLanes, sums[r][j]);
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
