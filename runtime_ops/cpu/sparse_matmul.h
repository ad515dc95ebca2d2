// SparseMatMul: multiply the active channels by their weight rows.
#pragma once

#include <memory>

#include "custom_op.h"
#include "sparse_kernels.h"

namespace sparsecc {

// SparseMatMul(values, indices, W, bias) -> values @ W[indices] + bias. float32 but for indices.
//   values   [..., A]
//   indices  [A] int64, each in [0, K)
//   W        [K, N], read in place: only the active rows, where values has few rows
//   bias     [N], may be absent
//   result   [..., N]
// Errors: any other rank, sizes that disagree, an index out of range.
//
// Each active weight row is read once for every kMaxBatch rows of values, and no other. Where there are so many rows
// that multiplications count and not reads, onnxruntime's own MatMul does the work, on all of W.
class SparseMatMul {
 public:
  static constexpr char kName[] = "SparseMatMul";
  static constexpr Argument kInputs[] = {{ort::kFloat}, {ort::kInt64}, {ort::kFloat}, {ort::kFloat, ort::kOptional}};
  static constexpr Argument kOutputs[] = {{ort::kFloat}};

  SparseMatMul(const OrtApi* api, const OrtKernelInfo* info);
  void Compute(const Call& call) const;

 private:
  AddRows add_rows_;
  Owned<OrtOp, ort::ReleaseOp> dense_matmul_;
};

}  // namespace sparsecc
