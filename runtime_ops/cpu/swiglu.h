// SwiGLU: what a gated feed-forward network does between its first projections and the last.
#pragma once

#include "custom_op.h"
#include "kernels/kernels.h"

namespace sparsecc {

// SwiGLU(X) -> Y: Y = gate * sigmoid(gate) * up, where the gate is the first half of X's channels and up the second.
// float32.
//   X   [..., 2 N]
//   Y   [..., N]
// Errors: X without a dimension, or with an odd last one.
class SwiGLU {
 public:
  static constexpr char kName[] = "SwiGLU";
  static constexpr Argument kInputs[] = {{ort::kFloat}};
  static constexpr Argument kOutputs[] = {{ort::kFloat}};

  SwiGLU(const OrtApi*, const OrtKernelInfo*) : kernels_(FastestKernels()) {}
  void Compute(const Call& call) const;

 private:
  const Kernels& kernels_;
};

}  // namespace sparsecc
