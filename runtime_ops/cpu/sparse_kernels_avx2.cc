// The kernels for x86-64 with AVX2 and FMA, compiled with both switched on. Nothing that this file defines or
// instantiates may have external linkage but AddRowsAvx2: the linker could pick a copy that uses AVX2 for the rest of
// the library, which has to run without. So it includes no C++ library header but those of types.
#include <immintrin.h>

#include "sparse_kernels.h"

namespace sparsecc {
namespace {

constexpr size_t kLanes = 8;
constexpr size_t kPrefetchFloats = 64;  // how far ahead in each row; twice that was up to 10 % slower on Zen 3

struct AllLanes {
  __m256 Load(const float* p) const { return _mm256_loadu_ps(p); }
  void Store(float* p, __m256 x) const { _mm256_storeu_ps(p, x); }
};

// The first `count` lanes, for the last columns: the same instructions on each column as in the middle of a row, so
// that a column's result does not depend on where its stripe ends.
struct FirstLanes {
  explicit FirstLanes(size_t count)
      : mask(_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                                _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))) {}
  __m256 Load(const float* p) const { return _mm256_maskload_ps(p, mask); }
  void Store(float* p, __m256 x) const { _mm256_maskstore_ps(p, mask, x); }
  __m256i mask;
};

// Adds kRows rows to one vector of the output. The products are summed before the output is added, which shortens the
// chain of roundings from A additions to A / kRows.
template <int kRows, typename Lanes>
inline void AddVector(const float* const* rows, const __m256* values, size_t c, float* out, const Lanes& lanes) {
  __m256 sum = _mm256_mul_ps(values[0], lanes.Load(rows[0] + c));
  for (int i = 1; i < kRows; ++i) sum = _mm256_fmadd_ps(values[i], lanes.Load(rows[i] + c), sum);
  lanes.Store(out + c, _mm256_add_ps(lanes.Load(out + c), sum));
}

template <int kRows>
inline void Prefetch(const float* const* rows, size_t c) {
  for (int i = 0; i < kRows; ++i) _mm_prefetch(reinterpret_cast<const char*>(rows[i] + c), _MM_HINT_T0);
}

// One row of values.
template <int kRows>
void AddToRow(const RowGroup& group, const OutputStripe& stripe) {
  const float* rows[kRows];
  __m256 values[kRows];
  for (int i = 0; i < kRows; ++i) {
    rows[i] = group.rows[i];
    values[i] = _mm256_set1_ps(group.values[i]);
  }
  float* const out = stripe.out;
  const size_t columns = stripe.columns;
  size_t c = 0;
  const auto add_line = [&] {
    AddVector<kRows>(rows, values, c, out, AllLanes());
    AddVector<kRows>(rows, values, c + kLanes, out, AllLanes());
  };
  for (; c + kPrefetchFloats + kLineFloats <= columns; c += kLineFloats) {
    Prefetch<kRows>(rows, c + kPrefetchFloats);
    add_line();
  }
  for (size_t ahead = 0; c + kLineFloats <= columns; c += kLineFloats, ahead += kLineFloats) {
    Prefetch<kRows>(group.next, ahead);
    add_line();
  }
  for (; c + kLanes <= columns; c += kLanes) AddVector<kRows>(rows, values, c, out, AllLanes());
  if (c < columns) AddVector<kRows>(rows, values, c, out, FirstLanes(columns - c));
}

// Several rows of values: the weights of two vectors of columns are loaded once and used for each row. `values` and
// `out` advance by constants here, for the compiler to keep everything in registers.
template <int kRows, int kVectors, typename Lanes>
inline void AddVectors(const float* const* rows, const float (*values)[kRows], const OutputStripe& stripe, size_t c,
                       const Lanes& lanes) {
  __m256 weights[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int v = 0; v < kVectors; ++v) weights[i][v] = lanes.Load(rows[i] + c + v * kLanes);
  }
  const size_t batch = stripe.batch, stride = stripe.stride;
  float* out = stripe.out + c;
  for (size_t b = 0; b < batch; ++b, out += stride) {
    __m256 sums[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = _mm256_mul_ps(_mm256_set1_ps(values[b][0]), weights[0][v]);
    for (int i = 1; i < kRows; ++i) {
      const __m256 value = _mm256_set1_ps(values[b][i]);
      for (int v = 0; v < kVectors; ++v) sums[v] = _mm256_fmadd_ps(value, weights[i][v], sums[v]);
    }
    for (int v = 0; v < kVectors; ++v) {
      lanes.Store(out + v * kLanes, _mm256_add_ps(lanes.Load(out + v * kLanes), sums[v]));
    }
  }
}

template <int kRows>
void AddToBatch(const RowGroup& group, const OutputStripe& stripe) {
  // The rows of values often lie a multiple of 4 KiB apart and would compete for the same few lines of the cache.
  float values[kMaxBatch][kRows];
  const float* rows[kRows];
  for (size_t b = 0; b < stripe.batch; ++b) {
    for (int i = 0; i < kRows; ++i) values[b][i] = group.values[b * group.values_stride + i];
  }
  for (int i = 0; i < kRows; ++i) rows[i] = group.rows[i];
  const size_t columns = stripe.columns;
  size_t c = 0;
  for (; c + kLineFloats <= columns; c += kLineFloats) {
    const bool in_rows = c + kPrefetchFloats < columns;
    Prefetch<kRows>(in_rows ? rows : group.next, in_rows ? c + kPrefetchFloats : c + kPrefetchFloats - columns);
    AddVectors<kRows, 2>(rows, values, stripe, c, AllLanes());
  }
  for (; c + kLanes <= columns; c += kLanes) AddVectors<kRows, 1>(rows, values, stripe, c, AllLanes());
  if (c < columns) AddVectors<kRows, 1>(rows, values, stripe, c, FirstLanes(columns - c));
}

template <int kRows>
void Add(const RowGroup& group, const OutputStripe& stripe) {
  stripe.batch == 1 ? AddToRow<kRows>(group, stripe) : AddToBatch<kRows>(group, stripe);
}

}  // namespace

void AddRowsAvx2(const RowGroup& group, const OutputStripe& stripe) {
  switch (group.count) {
    case 8:
      return AddToRow<8>(group, stripe);  // only a single row of values takes groups this large
    case 7:
      return AddToRow<7>(group, stripe);
    case 6:
      return AddToRow<6>(group, stripe);
    case 5:
      return AddToRow<5>(group, stripe);
    case 4:
      return Add<4>(group, stripe);
    case 3:
      return Add<3>(group, stripe);
    case 2:
      return Add<2>(group, stripe);
    case 1:
      return Add<1>(group, stripe);
  }
}

}  // namespace sparsecc
