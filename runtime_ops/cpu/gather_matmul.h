// GatherMatMul and GatherMatMulNBits: compute chosen output channels only.
#pragma once

#include <array>
#include <cstddef>

#include "custom_op.h"
#include "kernels/kernels.h"
#include "weights_input.h"

namespace sparsecc {

template <size_t kCount>
constexpr std::array<Argument, kCount - 1> WithoutLast(const std::array<Argument, kCount>& arguments) {
  std::array<Argument, kCount - 1> first{};
  for (size_t i = 0; i + 1 < kCount; ++i) first[i] = arguments[i];
  return first;
}

// GatherMatMul(X, indices, W) -> X @ transpose of W[indices]
//   X        [..., K]  float32
//   indices  [A]       int64, each in [0, N)
//   W        [N, K]    float32 or float16, read in place: only the chosen rows, each an output channel
//   result   [..., A]  float32
// Errors: any other rank, sizes that disagree, an index out of range.
//
// GatherMatMulNBits(X, indices, Wq, scales) is the same with W[n, k] = Wq[n, k] * scales[n, k / block_size]:
//   Wq       [N, K]    int8 or int4
//   scales   [N, ceil(K / block_size)]  float16
// Where block_size is a multiple of 32, each 32 values of X are rounded to 8 bits, relative to the largest of them.
template <WeightType kType>
class GatherMatMul {
 public:
  static constexpr bool kIsQuantized = BitsPerWeight(kType) < 16;
  static constexpr const char* kName = kIsQuantized ? "GatherMatMulNBits" : "GatherMatMul";
  static constexpr auto kInputs = WithoutLast(WeightsInput<kType>::Inputs({ort::kFloat}, {ort::kInt64}));  // no bias
  static constexpr Argument kOutputs[] = {{ort::kFloat}};

  GatherMatMul(const OrtApi* api, const OrtKernelInfo* info) : weights_(api, info), kernels_(FastestKernels()) {}
  void Compute(const Call& call) const;

 private:
  WeightsInput<kType> weights_;
  const Kernels& kernels_;
};

}  // namespace sparsecc
