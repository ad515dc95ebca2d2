// The inner loops of SparseMatMul: a few weight rows, scaled and added to a stripe of the output.
//
//   out[b, c] += sum over i of values[b, i] * rows[i][c]
//
// One weight row after another is how the weights lie in memory, and it makes every load a contiguous one; what it
// costs is that the output is read and written once for each row. So a group of rows is added at once, on a stripe of
// columns whose outputs stay in the first-level cache.
//
// A group's rows are far apart, each only a few KiB long: too short for the processor's own prefetcher, which stops at
// every 4 KiB page and has to learn each row anew. The kernels prefetch a fixed distance ahead instead, over the end of
// the rows into those of the next group.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sparsecc {

constexpr size_t kMaxGroup = 8;     // rows added at once
constexpr size_t kLineFloats = 16;  // floats in a cache line
constexpr size_t kMaxBatch = 16;    // rows of the output that a kernel serves with one read of the weights

struct RowGroup {
  size_t count;                  // 1 to kMaxGroup
  const float* rows[kMaxGroup];  // at the first column of the stripe
  const float* next[kMaxGroup];  // the rows read after these, to be prefetched
  const float* values;           // values[b * values_stride + i]
  size_t values_stride;
};

struct OutputStripe {
  float* out;  // out[b * stride + c]
  size_t stride;
  size_t batch;  // 1 to kMaxBatch
  size_t columns;
};

using AddRows = void (*)(const RowGroup& group, const OutputStripe& stripe);

void AddRowsPortable(const RowGroup& group, const OutputStripe& stripe);
void AddRowsAvx2(const RowGroup& group, const OutputStripe& stripe);  // needs AVX2 and FMA

// The fastest kernel for this processor; the portable one where the environment has SPARSECC_KERNELS=portable, for
// finding out whether a difference comes from the kernels.
AddRows FastestKernel();

// values [rows, active] times weights[indices] [active, columns], of which `active` rows are read.
struct SparseProduct {
  const float* values;
  size_t rows;
  const int64_t* indices;  // each a row of the weights
  size_t active;
  const float* weights;
  size_t columns;
  float* out;  // [rows, columns]
};

// Adds columns [begin, end) of the product to its output. The order of additions in a column does not depend on the
// range, so that splitting the columns in any way gives the same bits.
void AddColumns(const SparseProduct& product, AddRows add_rows, size_t begin, size_t end);

}  // namespace sparsecc
