// The kernels in plain C++, for processors without a unit of their own. The compiler vectorizes the loops with what
// every processor of the architecture has.
#include "sparse_kernels.h"

namespace sparsecc {
namespace {

void AddFour(const float* const* rows, const float* values, float* __restrict out, size_t columns) {
  const float *row0 = rows[0], *row1 = rows[1], *row2 = rows[2], *row3 = rows[3];
  const float value0 = values[0], value1 = values[1], value2 = values[2], value3 = values[3];
  for (size_t c = 0; c < columns; ++c) {
    out[c] += (value0 * row0[c] + value1 * row1[c]) + (value2 * row2[c] + value3 * row3[c]);
  }
}

void AddOne(const float* row, float value, float* __restrict out, size_t columns) {
  for (size_t c = 0; c < columns; ++c) out[c] += value * row[c];
}

}  // namespace

void AddRowsPortable(const RowGroup& group, const OutputStripe& stripe) {
  for (size_t b = 0; b < stripe.batch; ++b) {
    const float* values = group.values + b * group.values_stride;
    float* out = stripe.out + b * stripe.stride;
    size_t i = 0;
    for (; i + 4 <= group.count; i += 4) AddFour(group.rows + i, values + i, out, stripe.columns);
    for (; i < group.count; ++i) AddOne(group.rows[i], values[i], out, stripe.columns);
  }
}

}  // namespace sparsecc
