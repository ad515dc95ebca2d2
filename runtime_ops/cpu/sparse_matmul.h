// SparseMatMul and SparseMatMulNBits: multiply the active channels by their weight rows.
#pragma once

#include "custom_op.h"
#include "kernels/kernels.h"
#include "weights_input.h"

namespace sparsecc {

// SparseMatMul(values, indices, W, bias) -> values @ W[indices] + bias
//   values   [..., A]  float32
//   indices  [A]       int64, each in [0, K)
//   W        [K, N]    float32 or float16, read in place: only the active rows, where values has few rows
//   bias     [N]       float32, may be absent
//   result   [..., N]  float32
// Errors: any other rank, sizes that disagree, an index out of range.
//
// SparseMatMulNBits(values, indices, Wq, scales, bias) is the same with W[k, n] = Wq[k, n] * scales[k, n / block_size]:
//   Wq       [K, N]    int8 or int4
//   scales   [K, ceil(N / block_size)]  float16
// For one row of values and few, the terms values[a] * scales[k, b] are rounded to 16 bits with int8 weights and to 8
// bits with int4 weights, relative to the largest of 32 active rows in that block of columns. Outliers among the values
// of one row have groups of their own.
template <WeightType kType>
class SparseMatMul {
 public:
  static constexpr auto& kName = WeightsInput<kType>::kMatMulName;
  static constexpr auto kInputs = WeightsInput<kType>::Inputs({ort::kFloat}, {ort::kInt64});
  static constexpr Argument kOutputs[] = {{ort::kFloat}};

  SparseMatMul(const OrtApi* api, const OrtKernelInfo* info) : weights_(api, info), kernels_(FastestKernels()) {}
  void Compute(const Call& call) const;

 private:
  WeightsInput<kType> weights_;
  const Kernels& kernels_;
};

}  // namespace sparsecc
