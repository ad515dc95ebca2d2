// Which panels the kernels unpack themselves; the others are left to the portable one.
#pragma once

#include "kernels.h"

namespace sparsecc {
namespace {
namespace panel {

// Whether the columns of each of a stripe's panels are all there, begin with a byte and lie in one block.
inline bool IsUsual(const Weights& weights, Stripe stripe) {
  const bool is_whole = (stripe.end - stripe.begin) % kPanelColumns == 0;
  const bool is_whole_bytes = weights.type != kInt4 || (weights.columns % 2 == 0 && stripe.begin % 2 == 0);
  const bool is_one_block =
      weights.scales == nullptr || (weights.block % kPanelColumns == 0 && stripe.begin % kPanelColumns == 0);
  return is_whole && is_whole_bytes && is_one_block;
}

}  // namespace panel
}  // namespace
}  // namespace sparsecc
