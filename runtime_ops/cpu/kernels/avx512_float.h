// Rows of float32 and float16 with AVX-512: eight rows at a time, added in registers before the output is.
#pragma once

#include "avx512_vectors.h"
#include "kernels.h"

namespace sparsecc {
namespace {
namespace floating {

constexpr size_t kRowsAtOnce = 8;
constexpr size_t kPrefetchBytes = 2048;  // how far ahead in each row, to the second-level cache

template <typename Weight>
struct Rows {
  const Weight* rows[kRowsAtOnce];
  const Weight* next[kRowsAtOnce];
  __m512 values[kRowsAtOnce];
};

// The products are summed before the output is added, which shortens the chain of roundings from A additions to A / 8.
template <size_t kRows, typename LoadRow>
inline __attribute__((always_inline)) __m512 Sum(const LoadRow& load, const __m512* values) {
  __m512 sum = _mm512_mul_ps(values[0], load(0));
  for (size_t i = 1; i < kRows; ++i) sum = _mm512_fmadd_ps(values[i], load(i), sum);
  return sum;
}

template <size_t kRows, typename Weight>
__attribute__((noinline)) void Add(const Rows<Weight>& group, Stripe stripe, float* out) {
  constexpr size_t kLine = 64 / sizeof(Weight), kAhead = kPrefetchBytes / sizeof(Weight);
  Rows<Weight> local = group;  // so that the compiler sees that storing to out changes no pointer
  const auto prefetch = [&](const Weight* const* rows, size_t c) __attribute__((always_inline)) {
    for (size_t i = 0; i < kRows; ++i) _mm_prefetch(reinterpret_cast<const char*>(rows[i] + c), _MM_HINT_T1);
  };
  const auto add = [&](size_t c) __attribute__((always_inline)) {
    const auto load = [&](size_t i) __attribute__((always_inline)) { return Load(local.rows[i] + c); };
    _mm512_storeu_ps(out + c, _mm512_add_ps(_mm512_loadu_ps(out + c), Sum<kRows>(load, local.values)));
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
  const __mmask16 lanes = FirstLanes(columns - c);
  const auto load = [&](size_t i) __attribute__((always_inline)) { return LoadLanes(local.rows[i] + c, lanes); };
  const __m512 sum = _mm512_add_ps(LoadLanes(out + c, lanes), Sum<kRows>(load, local.values));
  _mm512_mask_storeu_ps(out + c, lanes, sum);
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
      rows.values[i] = _mm512_set1_ps(group.values[first + i]);
    }
    AddAtOnce(count, rows, stripe, out);
  }
}

}  // namespace floating
}  // namespace
}  // namespace sparsecc
