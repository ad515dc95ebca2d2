// The weights and the bias of an operator, as its last inputs: W, bias, or Wq, scales, bias.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "custom_op.h"
#include "huge_pages.h"
#include "tensor.h"
#include "weights.h"

namespace sparsecc {

struct Linear {
  Weights weights;
  const float* bias;  // or null
};

inline Tensor<const float> ReadBias(const Call& call, size_t input, const Shape& weights) {
  const auto bias = call.OptionalInput<float>(input, "bias", 1);
  if (bias.value != nullptr && bias.shape[0] != weights[1]) {
    throw OpError("bias is " + ToString(bias.shape) + ", but W is " + ToString(weights));
  }
  return bias;
}

template <WeightType kType>
class WeightsInput;

template <WeightType kType, typename Element>
class FloatWeightsInput {
 public:
  static constexpr char kMatMulName[] = "SparseMatMul";
  static constexpr char kLinearName[] = "SparseLinear";

  static constexpr std::array<Argument, 4> Inputs(Argument first, Argument second) {
    return {first, second, {kElementType<Element>}, {ort::kFloat, ort::kOptional}};
  }

  FloatWeightsInput(const OrtApi*, const OrtKernelInfo*) {}

  Linear Read(const Call& call, size_t input) const {
    const auto w = call.Input<Element>(input, "W", 2);
    const auto bias = ReadBias(call, input + 1, w.shape);
    const Weights weights = {kType, w.data, static_cast<size_t>(w.shape[0]), static_cast<size_t>(w.shape[1])};
    huge_pages_.Prefer(weights);
    return {weights, bias.data};
  }

 private:
  HugePages huge_pages_;
};

template <>
class WeightsInput<kFloat32> : public FloatWeightsInput<kFloat32, float> {
  using FloatWeightsInput::FloatWeightsInput;
};
template <>
class WeightsInput<kFloat16> : public FloatWeightsInput<kFloat16, Half> {
  using FloatWeightsInput::FloatWeightsInput;
};

template <WeightType kType, typename Element>
class QuantizedWeightsInput {
 public:
  static constexpr char kMatMulName[] = "SparseMatMulNBits";
  static constexpr char kLinearName[] = "SparseLinearNBits";

  static constexpr std::array<Argument, 5> Inputs(Argument first, Argument second) {
    return {first, second, {kElementType<Element>}, {kElementType<Half>}, {ort::kFloat, ort::kOptional}};
  }

  QuantizedWeightsInput(const OrtApi* api, const OrtKernelInfo* info) {
    const int64_t block = Attribute(api, info, "block_size", 32);
    if (block <= 0) throw OpError("block_size must be positive, not " + std::to_string(block));
    block_ = static_cast<size_t>(block);
  }

  Linear Read(const Call& call, size_t input) const {
    const auto w = call.Input<Element>(input, "Wq", 2);
    const auto scales = call.Input<Half>(input + 1, "scales", 2);
    const auto bias = ReadBias(call, input + 2, w.shape);
    const Weights weights = {kType,
                             w.data,
                             static_cast<size_t>(w.shape[0]),
                             static_cast<size_t>(w.shape[1]),
                             reinterpret_cast<const uint16_t*>(scales.data),
                             block_};
    if (scales.shape != Shape{w.shape[0], static_cast<int64_t>(weights.blocks())}) {
      throw OpError("scales is " + ToString(scales.shape) + ", but Wq is " + ToString(w.shape) + " in blocks of " +
                    std::to_string(block_));
    }
    huge_pages_.Prefer(weights);
    return {weights, bias.data};
  }

 private:
  size_t block_;
  HugePages huge_pages_;
};

template <>
class WeightsInput<kInt8> : public QuantizedWeightsInput<kInt8, int8_t> {
  using QuantizedWeightsInput::QuantizedWeightsInput;
};
template <>
class WeightsInput<kInt4> : public QuantizedWeightsInput<kInt4, Int4Pair> {
  using QuantizedWeightsInput::QuantizedWeightsInput;
};

}  // namespace sparsecc
