// GatherActive: select the channels of a thresholded hidden state that are not zero.
#pragma once

#include "custom_op.h"

namespace sparsecc {

// GatherActive(Y) -> values, indices: the channels that are non-zero in any row, ascending. NaN is non-zero.
//   Y        [..., K] float32
//   values   [..., A] float32: Y at those channels
//   indices  [A]      int64
// Errors: Y without a dimension.
class GatherActive {
 public:
  static constexpr char kName[] = "GatherActive";
  static constexpr Argument kInputs[] = {{ort::kFloat}};
  static constexpr Argument kOutputs[] = {{ort::kFloat}, {ort::kInt64}};

  GatherActive(const OrtApi*, const OrtKernelInfo*) {}
  void Compute(const Call& call) const;
};

}  // namespace sparsecc
