#include "sparse_matmul.h"

#include <cstdint>

#include "indices.h"
#include "product.h"

namespace sparsecc {
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
