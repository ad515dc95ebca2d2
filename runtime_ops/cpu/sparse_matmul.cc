#include "sparse_matmul.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "product.h"

namespace sparsecc {
namespace {

// Throws unless 0 <= index < rows for each. Both conditions are sign bits, so that the loop has no branch.
void CheckRange(const Tensor<const int64_t>& indices, size_t rows) {
  const size_t count = Columns(indices.shape);
  uint64_t signs = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t index = static_cast<uint64_t>(indices.data[i]);
    signs |= index | (static_cast<uint64_t>(rows) - 1 - index);
  }
  if (signs >> 63 == 0) return;
  const auto bad = std::find_if(indices.data, indices.data + count,
                                [rows](int64_t index) { return index < 0 || static_cast<uint64_t>(index) >= rows; });
  throw OpError("indices has " + std::to_string(*bad) + " at position " + std::to_string(bad - indices.data) +
                ", but W has " + std::to_string(rows) + " rows");
}

}  // namespace

template <WeightType kType>
void SparseMatMul<kType>::Compute(const Call& call) const {
  const auto values = call.Input<float>(0, "values", Call::kAnyRank);
  const auto indices = call.Input<int64_t>(1, "indices", 1);
  const Linear linear = weights_.Read(call, 2);
  if (values.shape.back() != indices.shape[0]) {
    throw OpError("values is " + ToString(values.shape) + ", but indices is " + ToString(indices.shape));
  }
  CheckRange(indices, linear.weights.channels);
  Shape shape = values.shape;
  shape.back() = static_cast<int64_t>(linear.weights.columns);
  const auto out = call.Output<float>(0, shape);
  Multiply(
      call, kernels_,
      {values.data, Rows(values.shape), indices.data, Columns(indices.shape), linear.weights, linear.bias, out.data});
}

template class SparseMatMul<kFloat32>;
template class SparseMatMul<kFloat16>;
template class SparseMatMul<kInt8>;
template class SparseMatMul<kInt4>;

}  // namespace sparsecc
