// Rows of float32 and float16 with NEON: eight rows at a time, added in registers before the output is.
#pragma once

#include <cstring>

#include "kernels.h"
#include "neon_vectors.h"

namespace sparsecc {
namespace {
namespace floating {

constexpr size_t kRowsAtOnce = 8;
constexpr size_t kPrefetchBytes = 256;  // how far ahead in each row

template <typename Weight>
struct Rows {
  const Weight* rows[kRowsAtOnce];
  const Weight* next[kRowsAtOnce];
  float values[kRowsAtOnce];
};

// The products are summed before the output is added, which shortens the chain of roundings from A additions to A / 8.
template <size_t kRows, typename LoadRow>
inline __attribute__((always_inline)) float32x4_t Sum(const LoadRow& load, const float* values) {
  float32x4_t sum = vmulq_n_f32(load(0), values[0]);
  for (size_t i = 1; i < kRows; ++i) sum = vfmaq_n_f32(sum, load(i), values[i]);
  return sum;
}

template <size_t kRows, typename Weight>
__attribute__((noinline)) void Add(const Rows<Weight>& group, Stripe stripe, float* out) {
  constexpr size_t kLine = 64 / sizeof(Weight), kAhead = kPrefetchBytes / sizeof(Weight);
  Rows<Weight> local = group;  // so that the compiler sees that storing to out changes no pointer
  const auto prefetch = [&](const Weight* const* rows, size_t c) __attribute__((always_inline)) {
    for (size_t i = 0; i < kRows; ++i) __builtin_prefetch(rows[i] + c);
  };
  const auto add = [&](size_t c) __attribute__((always_inline)) {
    const auto load = [&](size_t i) __attribute__((always_inline)) { return Load(local.rows[i] + c); };
    vst1q_f32(out + c, vaddq_f32(vld1q_f32(out + c), Sum<kRows>(load, local.values)));
  };
  const size_t columns = stripe.end;
  size_t c = stripe.begin;
  for (; c + kAhead + kLine <= columns; c += kLine) {
    prefetch(local.rows, c + kAhead);
    for (size_t v = 0; v < kLine; v += kLanes) add(c + v);
  }
  for (size_t ahead = stripe.begin; c + kLine <= columns; c += kLine, ahead += kLine) {
    prefetch(local.next, ahead);
    for (size_t v = 0; v < kLine; v += kLanes) add(c + v);
  }
  for (; c + kLanes <= columns; c += kLanes) add(c);
  if (c == columns) return;
  // The same instructions on each column as in the middle of a row, so that its result does not depend on the stripe.
  Weight last[kRows][kLanes] = {};
  float last_out[kLanes] = {};
  for (size_t i = 0; i < kRows; ++i) std::memcpy(last[i], local.rows[i] + c, (columns - c) * sizeof(Weight));
  std::memcpy(last_out, out + c, (columns - c) * sizeof(float));
  const auto load = [&](size_t i) __attribute__((always_inline)) { return Load(last[i]); };
  vst1q_f32(last_out, vaddq_f32(vld1q_f32(last_out), Sum<kRows>(load, local.values)));
  std::memcpy(out + c, last_out, (columns - c) * sizeof(float));
}

template <typename Weight>
void AddAtOnce(size_t count, const Rows<Weight>& rows, Stripe stripe, float* out) {
  switch (count) {
    case 8:
      return Add<8>(rows, stripe, out);
    case 7:
      return Add<7>(rows, stripe, out);
    case 6:
      return Add<6>(rows, stripe, out);
    case 5:
      return Add<5>(rows, stripe, out);
    case 4:
      return Add<4>(rows, stripe, out);
    case 3:
      return Add<3>(rows, stripe, out);
    case 2:
      return Add<2>(rows, stripe, out);
    case 1:
      return Add<1>(rows, stripe, out);
  }
}

template <typename Weight>
void AddGroup(const RowGroup& group, Stripe stripe, float* out) {
  for (size_t first = 0; first < group.count; first += kRowsAtOnce) {
    const size_t count = group.count - first < kRowsAtOnce ? group.count - first : kRowsAtOnce;
    Rows<Weight> rows;
    for (size_t i = 0; i < kRowsAtOnce; ++i) {
      rows.rows[i] = static_cast<const Weight*>(group.rows[first + i]);
      rows.next[i] = static_cast<const Weight*>(group.rows[first + kRowsAtOnce + i]);
      rows.values[i] = group.values[first + i];
    }
    AddAtOnce(count, rows, stripe, out);
  }
}

}  // namespace floating
}  // namespace
}  // namespace sparsecc
