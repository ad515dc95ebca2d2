// The activation of a gated feed-forward network, which every set of kernels compiles with the vectors that it has:
//
//   out[c] = gate[c] / (1 + exp(-gate[c])) * up[c]
//
// exp(x) is 2^n * exp(r), where n is the integer next to x / ln 2, so that r is at most ln 2 / 2 and seven terms of the
// series are within 2e-7 of exp(r).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace sparsecc {
namespace {
namespace swiglu {

inline uint32_t Bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float Float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// exp(x) from -87 on; exp(-87) below, and infinity above 88.4 and for NaN.
inline float Exp(float x) {
  const float upper = x < 89.0f ? x : 89.0f;  // of which n is that of an infinite float
  const float clamped = upper > -87.0f ? upper : -87.0f;
  const float biased = clamped * 0x1.715476p0f + 0x1.8p23f;  // has no digits behind the point: its last bits are n
  const float n = biased - 0x1.8p23f;
  const float r = clamped - n * 0x1.62e4p-1f - n * 0x1.7f7d1cp-20f;  // ln 2 in two parts, the first times n exact
  const float high = ((1.0f / 720.0f * r + 1.0f / 120.0f) * r + 1.0f / 24.0f) * r + 1.0f / 6.0f;
  const float series = ((high * r + 0.5f) * r + 1.0f) * r + 1.0f;
  return series * Float((Bits(biased) << 23) + Bits(1.0f));
}

// Inlining would lose __restrict, and with it the vector code.
__attribute__((noinline)) void Apply(const float* __restrict gate, const float* __restrict up, size_t count,
                                     float* __restrict out) {
  for (size_t c = 0; c < count; ++c) out[c] = gate[c] / (1.0f + Exp(-gate[c])) * up[c];
}

}  // namespace swiglu
}  // namespace
}  // namespace sparsecc
