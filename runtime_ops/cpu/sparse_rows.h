// What a threshold keeps, and up to how many rows it is applied.
#pragma once

#include <cstddef>
#include <cstdint>

#include "custom_op.h"
#include "tensor.h"

namespace sparsecc {

// The attribute max_sparse_rows: a hidden state of more rows than that passes a threshold untouched, unless it is 0.
class SparseRows {
 public:
  SparseRows(const OrtApi* api, const OrtKernelInfo* info) : limit_(Attribute(api, info, "max_sparse_rows", 0)) {}

  bool IsDense(size_t rows) const { return limit_ > 0 && rows > static_cast<size_t>(limit_); }

 private:
  int64_t limit_;
};

// The input T of an operator: [1], or one for each of X's channels.
inline Tensor<const float> ReadThresholds(const Call& call, size_t input, const Shape& x) {
  const auto t = call.Input<float>(input, "T", 1);
  if (t.shape[0] != 1 && t.shape[0] != x.back()) {
    throw OpError("T must be [1] or [K], but X is " + ToString(x) + " and T is " + ToString(t.shape));
  }
  return t;
}

}  // namespace sparsecc
