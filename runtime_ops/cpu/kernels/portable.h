// What the other sets of kernels fall back on, where a shape or a value is out of the ordinary.
#pragma once

#include "../half.h"
#include "kernels.h"

namespace sparsecc {

void AddRowsPortable(WeightType type, const RowGroup& group, Stripe stripe, float* out);
void UnpackPanelsPortable(const Weights& weights, const int64_t* indices, size_t count, Channels channels,
                          Stripe stripe, float* panels);
void UnpackIntegersPortable(const Weights& weights, const int64_t* indices, size_t count, Stripe stripe,
                            int16_t* panels);

}  // namespace sparsecc
