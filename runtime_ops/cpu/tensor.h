// Tensors as an operator reads and writes them: typed, with every shape checked before memory is touched.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.h"

namespace sparsecc {

// What is wrong, in the user's words. Thrown anywhere inside an operator; becomes an OrtStatus at the C boundary.
class OpError : public std::runtime_error {
 public:
  explicit OpError(const std::string& message, int code = ort::kInvalidArgument)
      : std::runtime_error(message), code_(code) {}
  int code() const { return code_; }

 private:
  int code_;
};

// Throws an error that onnxruntime reports.
inline void Check(const OrtApi* api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = ort::GetErrorMessage(api, status);
  ort::ReleaseStatus(api, status);
  throw OpError(message, ort::kFail);
}

// An object of onnxruntime's that is released at the end of the scope.
template <auto& kRelease>
struct Releaser {
  const OrtApi* api;
  template <typename Object>
  void operator()(Object* object) const {
    kRelease(api, object);
  }
};
template <typename Object, auto& kRelease>
using Owned = std::unique_ptr<Object, Releaser<kRelease>>;

using Shape = std::vector<int64_t>;

inline std::string ToString(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

// The number of elements of dimensions [first, last); throws where the bytes of that many floats or integers would
// not fit the address space. Zero-sized dimensions come last in the product, so a huge one beside them still throws.
inline size_t Elements(const Shape& shape, size_t first, size_t last) {
  size_t product = 1;
  bool is_empty = false;
  for (size_t i = first; i < last; ++i) {
    if (shape[i] < 0) throw OpError("a dimension of " + ToString(shape) + " is negative");
    if (shape[i] == 0) {
      is_empty = true;
    } else if (product > PTRDIFF_MAX / sizeof(int64_t) / static_cast<size_t>(shape[i])) {
      throw OpError("the shape " + ToString(shape) + " is too large");
    } else {
      product *= static_cast<size_t>(shape[i]);
    }
  }
  return is_empty ? 0 : product;
}
inline size_t Elements(const Shape& shape) { return Elements(shape, 0, shape.size()); }

// A tensor of rank 1 or more seen as a matrix: its last dimension is the columns, the others are the rows.
inline size_t Rows(const Shape& shape) { return Elements(shape, 0, shape.size() - 1); }
inline size_t Columns(const Shape& shape) { return static_cast<size_t>(shape.back()); }

template <typename T>
inline constexpr int kElementType = 0;
template <>
inline constexpr int kElementType<float> = ort::kFloat;
template <>
inline constexpr int kElementType<int64_t> = ort::kInt64;
template <>
inline constexpr int kElementType<int8_t> = ort::kInt8;

struct Half {
  uint16_t bits;
};
template <>
inline constexpr int kElementType<Half> = ort::kFloat16;

// Two elements of the tensor, the first in the lower half. The shape counts elements.
struct Int4Pair {
  uint8_t bits;
};
template <>
inline constexpr int kElementType<Int4Pair> = ort::kInt4;

template <typename T>
struct Tensor {
  T* data = nullptr;  // null for an optional input that is absent
  Shape shape;
  OrtValue* value = nullptr;
};

// One call of an operator: where its inputs and outputs are, and onnxruntime's threads.
class Call {
 public:
  Call(const OrtApi* api, OrtKernelContext* context) : api_(api), context_(context) {}

  const OrtApi* api() const { return api_; }
  OrtKernelContext* context() const { return context_; }

  // An input, whose element type is checked; its rank must be at least 1 where `rank` is kAnyRank, else equal it.
  static constexpr size_t kAnyRank = 0;
  template <typename T>
  Tensor<const T> Input(size_t index, const char* name, size_t rank) const {
    Tensor<const T> tensor = OptionalInput<T>(index, name, rank);
    if (tensor.value == nullptr) throw OpError(std::string(name) + " is missing");
    return tensor;
  }

  template <typename T>
  Tensor<const T> OptionalInput(size_t index, const char* name, size_t rank) const {
    size_t count = 0;
    Check(api_, ort::GetInputCount(api_, context_, &count));
    const OrtValue* value = nullptr;
    if (index < count) Check(api_, ort::GetInput(api_, context_, index, &value));
    Tensor<const T> tensor;
    if (value == nullptr) return tensor;
    tensor.value = const_cast<OrtValue*>(value);  // the C API asks for a mutable value to read through as well
    tensor.shape = CheckedShape(value, name, kElementType<T>, rank);
    tensor.data = static_cast<const T*>(Data(tensor.value));
    return tensor;
  }

  // An output of that shape, allocated by onnxruntime and not initialized.
  template <typename T>
  Tensor<T> Output(size_t index, const Shape& shape) const {
    Elements(shape);
    Tensor<T> tensor;
    tensor.shape = shape;
    Check(api_, ort::GetOutput(api_, context_, index, shape.data(), shape.size(), &tensor.value));
    tensor.data = static_cast<T*>(Data(tensor.value));
    return tensor;
  }

  // Calls run(0) ... run(tasks - 1), which must not throw, on the session's own threads.
  template <typename Run>
  void Parallel(size_t tasks, const Run& run) const {
    if (tasks <= 1) {
      if (tasks == 1) run(size_t{0});
      return;
    }
    const auto invoke = [](void* function, size_t task) { (*static_cast<const Run*>(function))(task); };
    Check(api_, ort::ParallelFor(api_, context_, invoke, tasks, 0, const_cast<Run*>(&run)));
  }

 private:
  Shape CheckedShape(const OrtValue* value, const char* name, int element_type, size_t rank) const {
    OrtTensorTypeAndShapeInfo* released = nullptr;
    Check(api_, ort::GetTensorTypeAndShape(api_, value, &released));
    const Owned<OrtTensorTypeAndShapeInfo, ort::ReleaseTensorTypeAndShapeInfo> info(released, {api_});
    int type = 0;
    Check(api_, ort::GetTensorElementType(api_, info.get(), &type));
    if (type != element_type) throw OpError(std::string(name) + " has the wrong element type");
    size_t dimensions = 0;
    Check(api_, ort::GetDimensionsCount(api_, info.get(), &dimensions));
    Shape shape(dimensions);
    Check(api_, ort::GetDimensions(api_, info.get(), shape.data(), shape.size()));
    if (rank == kAnyRank ? shape.empty() : shape.size() != rank) {
      throw OpError(std::string(name) + " must have rank " + (rank == kAnyRank ? "1 or more" : std::to_string(rank)) +
                    ", but its shape is " + ToString(shape));
    }
    Elements(shape);
    return shape;
  }

  void* Data(OrtValue* value) const {
    void* data = nullptr;
    Check(api_, ort::GetTensorMutableData(api_, value, &data));
    return data;
  }

  const OrtApi* api_;
  OrtKernelContext* context_;
};

}  // namespace sparsecc
