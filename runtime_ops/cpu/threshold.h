// Threshold: zero the entries of a hidden state that are too small to matter.
#pragma once

#include "custom_op.h"
#include "sparse_rows.h"

namespace sparsecc {

// Threshold(X, T) -> Y: Y = X where |X| >= T, else 0; a NaN on either side gives 0. float32.
//   X   [..., K]
//   T   [1], or [K]: a threshold for each channel
//   Y   [..., K]
//   max_sparse_rows (attribute, default 0): where X has more rows than that, and that is positive, Y = X
// Errors: X without a dimension, T of another shape.
class Threshold {
 public:
  static constexpr char kName[] = "Threshold";
  static constexpr Argument kInputs[] = {{ort::kFloat}, {ort::kFloat}};
  static constexpr Argument kOutputs[] = {{ort::kFloat}};

  Threshold(const OrtApi* api, const OrtKernelInfo* info) : sparse_rows_(api, info) {}
  void Compute(const Call& call) const;

 private:
  SparseRows sparse_rows_;
};

}  // namespace sparsecc
