// float16 without hardware support.
#pragma once

#include <cstdint>
#include <cstring>

namespace sparsecc {

static inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = half >> 10 & 31, mantissa = half & 1023;
  float value;
  if (exponent == 0) {
    value = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal, and zero
    return sign != 0 ? -value : value;
  }
  const uint32_t bits = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | mantissa << 13;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// The same of one that is neither infinite nor NaN, without branches.
static inline float FiniteHalfToFloat(uint16_t half) {
  const uint32_t magnitude = half & 0x7FFF, sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const float subnormal = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f;
  uint32_t bits;
  std::memcpy(&bits, &subnormal, sizeof(bits));
  bits = sign | (magnitude < 0x0400 ? bits : (magnitude << 13) + (112u << 23));
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace sparsecc
