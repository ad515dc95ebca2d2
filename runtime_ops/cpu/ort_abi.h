// The part of onnxruntime's C ABI that the operators use.
//
// onnxruntime's Python wheel ships no headers, but its C ABI is frozen: OrtApi is a table of function pointers that
// only ever grows at its end, and OrtCustomOp is read only as far as its version says. So a function is named here by
// its position in the table, and one build of the operators serves every runtime from kApiVersion on.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtShapeInferContext;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtValue;

struct OrtApi {
  void (*entry[275])();
};

struct OrtApiBase {
  // Null where the runtime is older than the version asked for.
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// An operator as onnxruntime sees it. Members that may be null are left so unless they are needed.
struct OrtCustomOp {
  uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);  // V2 below reports errors
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);  // V2 below reports errors
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp*, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

}  // extern "C"

namespace sparsecc::ort {

// The lowest version with everything used here, for the widest range of runtimes.
constexpr uint32_t kApiVersion = 18;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int { kFloat = 1, kInt8 = 3, kInt64 = 7, kFloat16 = 10, kInt4 = 22 };
enum Characteristic : int { kRequired = 0, kOptional = 1 };
constexpr int kDefaultMemory = 0;

// A function of the table; calling it with the table first calls that entry.
template <size_t kPosition, typename Result, typename... Arguments>
struct Function {
  static_assert(kPosition < sizeof(OrtApi) / sizeof(void (*)()));
  Result operator()(const OrtApi* api, Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(api->entry[kPosition])(arguments...);
  }
};

// Those that return a status return null for success; the caller owns any other.
template <size_t kPosition, typename... Arguments>
using Fallible = Function<kPosition, OrtStatus*, Arguments...>;

inline constexpr Function<0, OrtStatus*, int, const char*> CreateStatus;
inline constexpr Function<2, const char*, const OrtStatus*> GetErrorMessage;
inline constexpr Fallible<26, const char*, OrtCustomOpDomain**> CreateCustomOpDomain;
inline constexpr Fallible<27, OrtCustomOpDomain*, const OrtCustomOp*> AddCustomOp;
inline constexpr Fallible<28, OrtSessionOptions*, OrtCustomOpDomain*> AddCustomOpDomain;
inline constexpr Fallible<51, OrtValue*, void**> GetTensorMutableData;
inline constexpr Fallible<60, const OrtTensorTypeAndShapeInfo*, int*> GetTensorElementType;
inline constexpr Fallible<61, const OrtTensorTypeAndShapeInfo*, size_t*> GetDimensionsCount;
inline constexpr Fallible<62, const OrtTensorTypeAndShapeInfo*, int64_t*, size_t> GetDimensions;
inline constexpr Fallible<65, const OrtValue*, OrtTensorTypeAndShapeInfo**> GetTensorTypeAndShape;
inline constexpr Fallible<86, const OrtKernelInfo*, const char*, int64_t*> GetAttributeInt;
inline constexpr Fallible<88, const OrtKernelContext*, size_t*> GetInputCount;
inline constexpr Fallible<90, const OrtKernelContext*, size_t, const OrtValue**> GetInput;
inline constexpr Fallible<91, OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**> GetOutput;
inline constexpr Function<93, void, OrtStatus*> ReleaseStatus;
inline constexpr Function<99, void, OrtTensorTypeAndShapeInfo*> ReleaseTensorTypeAndShapeInfo;
inline constexpr Function<101, void, OrtCustomOpDomain*> ReleaseCustomOpDomain;
inline constexpr Fallible<274, const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*> ParallelFor;

}  // namespace sparsecc::ort
