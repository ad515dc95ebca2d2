#include "sparse_matmul.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "tasks.h"

namespace sparsecc {
namespace {

// Whether onnxruntime's MatMul is the faster way. It repacks all of W first, in the time in which it multiplies about
// 40 rows of values, and then takes 4/7 of the time of the kernels here for each multiplication; but it multiplies the
// zeros of the inactive channels too. (Measured on Zen 3.)
bool IsDenseFaster(double rows, double active, double channels) {
  return 4 * channels * (rows + 40) < 7 * active * rows;
}

struct Inputs {
  explicit Inputs(const Call& call)
      : values(call.Input<float>(0, "values", Call::kAnyRank)),
        indices(call.Input<int64_t>(1, "indices", 1)),
        weights(call.Input<float>(2, "W", 2)),
        bias(call.OptionalInput<float>(3, "bias", 1)) {}

  Tensor<const float> values;
  Tensor<const int64_t> indices;
  Tensor<const float> weights;
  Tensor<const float> bias;
};

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

void CheckSizes(const Inputs& inputs) {
  if (inputs.values.shape.back() != inputs.indices.shape[0]) {
    throw OpError("values is " + ToString(inputs.values.shape) + ", but indices is " + ToString(inputs.indices.shape));
  }
  if (inputs.bias.data != nullptr && inputs.bias.shape[0] != inputs.weights.shape[1]) {
    throw OpError("bias is " + ToString(inputs.bias.shape) + ", but W is " + ToString(inputs.weights.shape));
  }
  CheckRange(inputs.indices, static_cast<size_t>(inputs.weights.shape[0]));
}

Shape OutputShape(const Inputs& inputs) {
  Shape shape = inputs.values.shape;
  shape.back() = inputs.weights.shape[1];
  return shape;
}

void MultiplySparse(const Call& call, const SparseProduct& product, const float* bias, AddRows add_rows) {
  const Split split(product.columns, product.active * product.rows, kLineFloats);
  call.Parallel(split.tasks(), [&](size_t task) {
    const size_t begin = split.begin(task), end = split.end(task);
    for (size_t row = 0; row < product.rows; ++row) {
      float* out = product.out + row * product.columns;
      if (bias != nullptr) {
        std::copy(bias + begin, bias + end, out + begin);
      } else {
        std::fill(out + begin, out + end, 0.0f);
      }
    }
    AddColumns(product, add_rows, begin, end);
  });
}

bool IsAscending(const SparseProduct& product) {
  const int64_t* end = product.indices + product.active;
  return std::adjacent_find(product.indices, end, [](int64_t a, int64_t b) { return a >= b; }) == end;
}

// The values with their zeros again: [rows, channels].
std::vector<float> Scatter(const Call& call, const SparseProduct& product, size_t channels) {
  std::vector<float> dense(Elements({static_cast<int64_t>(product.rows), static_cast<int64_t>(channels)}), 0.0f);
  const Split split(product.rows, product.active);
  call.Parallel(split.tasks(), [&](size_t task) {
    for (size_t row = split.begin(task); row < split.end(task); ++row) {
      const float* values = product.values + row * product.active;
      for (size_t a = 0; a < product.active; ++a) dense[row * channels + product.indices[a]] = values[a];
    }
  });
  return dense;
}

Owned<OrtValue, ort::ReleaseValue> Wrap(const OrtApi* api, std::vector<float>& data, const Shape& shape) {
  OrtMemoryInfo* released_memory = nullptr;
  Check(api, ort::CreateCpuMemoryInfo(api, ort::kDeviceAllocator, ort::kDefaultMemory, &released_memory));
  const Owned<OrtMemoryInfo, ort::ReleaseMemoryInfo> memory(released_memory, {api});
  OrtValue* released_value = nullptr;
  Check(api, ort::CreateTensorWithData(api, memory.get(), data.data(), data.size() * sizeof(float), shape.data(),
                                       shape.size(), ort::kFloat, &released_value));
  return {released_value, {api}};
}

void InvokeMatMul(const Call& call, const OrtOp* matmul, const OrtValue* left, const OrtValue* right, OrtValue* out) {
  const OrtValue* const inputs[] = {left, right};
  Check(call.api(), ort::InvokeOp(call.api(), call.context(), matmul, inputs, 2, &out, 1));
}

bool AnyNan(const Call& call, const SparseProduct& product) {
  std::atomic<bool> found{false};
  const Split split(product.rows, product.columns);
  call.Parallel(split.tasks(), [&](size_t task) {
    uint32_t nans = 0;
    for (size_t i = split.begin(task) * product.columns; i < split.end(task) * product.columns; ++i) {
      nans |= static_cast<uint32_t>(product.out[i] != product.out[i]);
    }
    if (nans != 0) found = true;
  });
  return found;
}

void AddBias(const Call& call, const SparseProduct& product, const float* bias) {
  const Split split(product.rows, product.columns);
  call.Parallel(split.tasks(), [&](size_t task) {
    for (size_t row = split.begin(task); row < split.end(task); ++row) {
      float* out = product.out + row * product.columns;
      for (size_t c = 0; c < product.columns; ++c) out[c] += bias[c];
    }
  });
}

}  // namespace

SparseMatMul::SparseMatMul(const OrtApi* api, const OrtKernelInfo* info)
    : add_rows_(FastestKernel()), dense_matmul_(nullptr, {api}) {
  const char* type_name = "T";
  const int type = ort::kFloat;
  OrtOp* matmul = nullptr;
  Check(api, ort::CreateOp(api, info, "MatMul", "", 13, &type_name, &type, 1, nullptr, 0, 2, 1, &matmul));
  dense_matmul_.reset(matmul);
}

void SparseMatMul::Compute(const Call& call) const {
  const Inputs inputs(call);
  CheckSizes(inputs);
  const auto out = call.Output<float>(0, OutputShape(inputs));
  const size_t channels = static_cast<size_t>(inputs.weights.shape[0]);
  const SparseProduct product{inputs.values.data,
                              Rows(inputs.values.shape),
                              inputs.indices.data,
                              Columns(inputs.indices.shape),
                              inputs.weights.data,
                              Columns(inputs.weights.shape),
                              out.data};
  if (product.rows == 0 || product.columns == 0) return;
  if (!IsDenseFaster(product.rows, product.active, channels) || !IsAscending(product)) {
    return MultiplySparse(call, product, inputs.bias.data, add_rows_);
  }
  if (product.active == channels) {  // ascending, so it is all of them in order
    InvokeMatMul(call, dense_matmul_.get(), inputs.values.value, inputs.weights.value, out.value);
  } else {
    std::vector<float> dense = Scatter(call, product, channels);
    Shape shape = inputs.values.shape;
    shape.back() = static_cast<int64_t>(channels);
    const auto value = Wrap(call.api(), dense, shape);
    InvokeMatMul(call, dense_matmul_.get(), value.get(), inputs.weights.value, out.value);
    // A zero times an infinite or NaN weight of an inactive row is NaN, where the operator does not look at that row.
    // Any such product shows in the result.
    if (AnyNan(call, product)) return MultiplySparse(call, product, inputs.bias.data, add_rows_);
  }
  if (inputs.bias.data != nullptr) AddBias(call, product, inputs.bias.data);
}

}  // namespace sparsecc
