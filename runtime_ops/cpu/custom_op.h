// Wraps a kernel class as an OrtCustomOp: the C boundary of every operator.
//
// A kernel class has
//   static constexpr char kName[];
//   static constexpr Argument kInputs[], kOutputs[];  // arrays of either kind
//   Kernel(const OrtApi*, const OrtKernelInfo*);   // reads attributes; one object for each node of a session
//   void Compute(const Call&) const;               // may be called by several threads at once
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <iterator>
#include <string>

#include "ort_abi.h"
#include "tensor.h"

namespace sparsecc {

struct Argument {
  int type;
  ort::Characteristic characteristic = ort::kRequired;
};

// Runs `body` and turns whatever it throws into a status, since no exception may cross into onnxruntime.
template <typename Body>
OrtStatus* Guard(const OrtApi* api, const char* op_name, const Body& body) noexcept {
  try {
    try {
      body();
      return nullptr;
    } catch (const OpError& error) {
      return ort::CreateStatus(api, error.code(), (std::string(op_name) + ": " + error.what()).c_str());
    } catch (const std::exception& error) {
      return ort::CreateStatus(api, ort::kFail, (std::string(op_name) + ": " + error.what()).c_str());
    }
  } catch (...) {  // not even the message could be built
    return ort::CreateStatus(api, ort::kFail, op_name);
  }
}

// The optional integer attribute of a node.
inline int64_t Attribute(const OrtApi* api, const OrtKernelInfo* info, const char* name, int64_t absent) {
  int64_t value = absent;
  OrtStatus* status = ort::GetAttributeInt(api, info, name, &value);
  if (status == nullptr) return value;
  ort::ReleaseStatus(api, status);
  return absent;
}

template <typename Kernel>
class CustomOp : public OrtCustomOp {
 public:
  CustomOp() : OrtCustomOp{} {
    version = ort::kApiVersion;
    GetName = [](const OrtCustomOp*) { return Kernel::kName; };
    GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU
    GetStartVersion = [](const OrtCustomOp*) { return 1; };
    GetEndVersion = [](const OrtCustomOp*) { return 1; };
    DescribeArguments();
    CreateKernelV2 = Create;
    KernelComputeV2 = Compute;
    KernelDestroy = [](void* node) { delete static_cast<Node*>(node); };
  }

 private:
  struct Node {
    Node(const OrtApi* api, const OrtKernelInfo* info) : api(api), kernel(api, info) {}
    const OrtApi* api;
    Kernel kernel;
  };

  void DescribeArguments() {
    GetInputTypeCount = [](const OrtCustomOp*) { return std::size(Kernel::kInputs); };
    GetInputType = [](const OrtCustomOp*, size_t i) -> int { return Kernel::kInputs[i].type; };
    GetInputCharacteristic = [](const OrtCustomOp*, size_t i) -> int { return Kernel::kInputs[i].characteristic; };
    GetInputMemoryType = [](const OrtCustomOp*, size_t) { return ort::kDefaultMemory; };
    GetOutputTypeCount = [](const OrtCustomOp*) { return std::size(Kernel::kOutputs); };
    GetOutputType = [](const OrtCustomOp*, size_t i) -> int { return Kernel::kOutputs[i].type; };
    GetOutputCharacteristic = [](const OrtCustomOp*, size_t i) -> int { return Kernel::kOutputs[i].characteristic; };
  }

  static OrtStatus* Create(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info, void** node) {
    return Guard(api, Kernel::kName, [&] { *node = new Node(api, info); });
  }

  static OrtStatus* Compute(void* opaque, OrtKernelContext* context) {
    const Node* node = static_cast<const Node*>(opaque);
    return Guard(node->api, Kernel::kName, [&] { node->kernel.Compute(Call(node->api, context)); });
  }
};

}  // namespace sparsecc
