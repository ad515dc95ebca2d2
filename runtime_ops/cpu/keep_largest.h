// KeepLargest: zero all but the largest entries of every row of a hidden state.
#pragma once

#include <cstddef>

#include "custom_op.h"
#include "sparse_rows.h"

namespace sparsecc {

// KeepLargest(X) -> Y: Y = X where |X| is among the k largest of its row, else 0; a NaN gives 0. float32.
//   X   [..., K]
//   Y   [..., K]
//   k (attribute): how many; all where a row has no more. Of equal magnitudes those of the first channels are kept
//   max_sparse_rows (attribute, default 0): where X has more rows than that, and that is positive, Y = X
// Errors: X without a dimension, k missing or negative.
class KeepLargest {
 public:
  static constexpr char kName[] = "KeepLargest";
  static constexpr Argument kInputs[] = {{ort::kFloat}};
  static constexpr Argument kOutputs[] = {{ort::kFloat}};

  KeepLargest(const OrtApi* api, const OrtKernelInfo* info);
  void Compute(const Call& call) const;

 private:
  size_t kept_;
  SparseRows sparse_rows_;
};

}  // namespace sparsecc
