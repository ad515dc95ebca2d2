// Four and eight weights as floats, whatever type they have in memory.
#pragma once

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

namespace sparsecc {
namespace {

constexpr size_t kLanes = 4;

inline float32x4_t Load(const float* weights) { return vld1q_f32(weights); }
inline float32x4_t Load(const uint16_t* halves) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves))); }

struct Eight {
  float32x4_t low, high;
};

inline Eight ToFloats(int16x8_t integers) {
  return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(integers))), vcvtq_f32_s32(vmovl_s16(vget_high_s16(integers)))};
}
inline Eight ToFloats(uint16x8_t halves) {
  const float16x8_t floats = vreinterpretq_f16_u16(halves);
  return {vcvt_f32_f16(vget_low_f16(floats)), vcvt_f32_f16(vget_high_f16(floats))};
}

// The int4 of 16 bytes at even and at odd places, as int8.
inline int8x16_t EvenHalves(int8x16_t bytes) { return vshrq_n_s8(vshlq_n_s8(bytes, 4), 4); }
inline int8x16_t OddHalves(int8x16_t bytes) { return vshrq_n_s8(bytes, 4); }

}  // namespace
}  // namespace sparsecc
