// SparseLinear and SparseLinearNBits: Threshold, GatherActive and the product in one operator.
#pragma once

#include "custom_op.h"
#include "kernels/kernels.h"
#include "sparse_rows.h"
#include "weights_input.h"

namespace sparsecc {

// SparseLinear(X, T, W, bias) -> SparseMatMul(GatherActive(Threshold(X, T)), W, bias)
//   X   [..., K]  float32
//   T   [1], or [K]: a threshold for each channel, float32
//   W   [K, N]    float32 or float16
//   bias  [N]     float32, may be absent
//   result  [..., N]  float32
//   max_sparse_rows (attribute, default 0): as Threshold has it
// SparseLinearNBits(X, T, Wq, scales, bias) is the same with the weights of SparseMatMulNBits.
// Errors: X without a dimension, W without a row for each channel, any other size that does not fit.
template <WeightType kType>
class SparseLinear {
 public:
  static constexpr auto& kName = WeightsInput<kType>::kLinearName;
  static constexpr auto kInputs = WeightsInput<kType>::Inputs({ort::kFloat}, {ort::kFloat});
  static constexpr Argument kOutputs[] = {{ort::kFloat}};

  SparseLinear(const OrtApi* api, const OrtKernelInfo* info)
      : sparse_rows_(api, info), weights_(api, info), kernels_(FastestKernels()) {}
  void Compute(const Call& call) const;

 private:
  SparseRows sparse_rows_;
  WeightsInput<kType> weights_;
  const Kernels& kernels_;
};

}  // namespace sparsecc
