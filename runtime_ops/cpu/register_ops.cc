// The entry point of the library: onnxruntime calls it when the library is registered with a session's options.
#include <string>

#include "custom_op.h"
#include "gather_active.h"
#include "gather_matmul.h"
#include "keep_largest.h"
#include "ort_abi.h"
#include "sparse_linear.h"
#include "sparse_matmul.h"
#include "swiglu.h"
#include "tensor.h"
#include "threshold.h"

#if defined(_WIN32)
#define SPARSECC_EXPORT __declspec(dllexport)
#else
#define SPARSECC_EXPORT __attribute__((visibility("default")))
#endif

namespace sparsecc {
namespace {

OrtCustomOpDomain* CreateDomain(const OrtApi* api) {
  static const CustomOp<Threshold> threshold;
  static const CustomOp<KeepLargest> keep_largest;
  static const CustomOp<GatherActive> gather_active;
  static const CustomOp<SparseMatMul<kFloat32>> sparse_matmul_float32;
  static const CustomOp<SparseMatMul<kFloat16>> sparse_matmul_float16;
  static const CustomOp<SparseMatMul<kInt8>> sparse_matmul_int8;
  static const CustomOp<SparseMatMul<kInt4>> sparse_matmul_int4;

  OrtCustomOpDomain* released = nullptr;
  Check(api, ort::CreateCustomOpDomain(api, "ai.sparsecc", &released));
  Owned<OrtCustomOpDomain, ort::ReleaseCustomOpDomain> domain(released, {api});
  static const CustomOp<SparseLinear<kFloat32>> sparse_linear_float32;
  static const CustomOp<SparseLinear<kFloat16>> sparse_linear_float16;
  static const CustomOp<SparseLinear<kInt8>> sparse_linear_int8;
  static const CustomOp<SparseLinear<kInt4>> sparse_linear_int4;
  static const CustomOp<GatherMatMul<kFloat32>> gather_matmul_float32;
  static const CustomOp<GatherMatMul<kFloat16>> gather_matmul_float16;
  static const CustomOp<GatherMatMul<kInt8>> gather_matmul_int8;
  static const CustomOp<GatherMatMul<kInt4>> gather_matmul_int4;
  static const CustomOp<SwiGLU> swiglu;
  const OrtCustomOp* const ops[] = {&threshold,
                                    &keep_largest,
                                    &gather_active,
                                    &sparse_matmul_float32,
                                    &sparse_matmul_float16,
                                    &sparse_matmul_int8,
                                    &sparse_matmul_int4,
                                    &sparse_linear_float32,
                                    &sparse_linear_float16,
                                    &sparse_linear_int8,
                                    &sparse_linear_int4,
                                    &gather_matmul_float32,
                                    &gather_matmul_float16,
                                    &gather_matmul_int8,
                                    &gather_matmul_int4,
                                    &swiglu};
  for (const OrtCustomOp* op : ops) Check(api, ort::AddCustomOp(api, domain.get(), op));
  return domain.release();
}

void Register(OrtSessionOptions* options, const OrtApi* api) {
  // Sessions point to the domain without owning it, so one lives as long as the process.
  static OrtCustomOpDomain* const domain = CreateDomain(api);
  Check(api, ort::AddCustomOpDomain(api, options, domain));
}

}  // namespace
}  // namespace sparsecc

// Returns null, or a status that says what is wrong. The first version of the API, which every runtime has, is enough
// to make that status.
extern "C" SPARSECC_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace sparsecc;
  if (const OrtApi* api = base->GetApi(ort::kApiVersion)) {
    return Guard(api, "sparsecc", [&] { Register(options, api); });
  }
  const OrtApi* oldest = base->GetApi(1);
  if (oldest == nullptr) return nullptr;  // no way to say so; models run without the operators, through their functions
  const std::string message = std::string("sparsecc needs onnxruntime 1.18 or newer, not ") + base->GetVersionString();
  return ort::CreateStatus(oldest, ort::kFail, message.c_str());
}
