// The kernels in plain C++, for processors without a unit of their own. The compiler vectorizes the loops with what
// every processor of the architecture has.
#include "portable.h"

#include <algorithm>

#include "panels_ahead.h"
#include "swiglu.h"

namespace sparsecc {
namespace {

// Weight c of a row of quantized weights that begins with a byte.
float Integer(const int8_t* row, size_t c) { return static_cast<float>(row[c]); }

struct Int4Row {
  const uint8_t* bytes;
};
float Integer(Int4Row row, size_t c) {
  const int half = c % 2 == 0 ? row.bytes[c / 2] & 15 : row.bytes[c / 2] >> 4;
  return static_cast<float>((half ^ 8) - 8);
}

void AddFloats(const RowGroup& group, size_t i, Stripe stripe, float* __restrict out) {
  const float* weights = static_cast<const float*>(group.rows[i]);
  const float value = group.values[i];
  for (size_t c = stripe.begin; c < stripe.end; ++c) out[c] += value * weights[c];
}

void AddHalves(const RowGroup& group, size_t i, Stripe stripe, float* __restrict out) {
  const uint16_t* weights = static_cast<const uint16_t*>(group.rows[i]);
  const float value = group.values[i];
  for (size_t c = stripe.begin; c < stripe.end; ++c) out[c] += value * HalfToFloat(weights[c]);
}

template <typename Row>
void AddBlocks(Row row, const RowGroup& group, size_t i, Stripe stripe, float* __restrict out) {
  for (size_t begin = stripe.begin; begin < stripe.end; begin += group.block) {
    const float scale = HalfToFloat(group.scales[i][begin / group.block]);
    const size_t end = std::min(begin + group.block, stripe.end);
    for (size_t c = begin; c < end; ++c) out[c] += group.values[i] * (scale * Integer(row, c));
  }
}

void AddInt8(const RowGroup& group, size_t i, Stripe stripe, float* out) {
  AddBlocks(static_cast<const int8_t*>(group.rows[i]), group, i, stripe, out);
}

void AddInt4(const RowGroup& group, size_t i, Stripe stripe, float* out) {
  AddBlocks(Int4Row{static_cast<const uint8_t*>(group.rows[i])}, group, i, stripe, out);
}

template <auto kAddRow>
void AddEach(const RowGroup& group, Stripe stripe, float* out) {
  for (size_t i = 0; i < group.count; ++i) kAddRow(group, i, stripe, out);
}

// The sum is taken in as many parts as vectors have lanes, so that the compiler can vectorize it.
template <typename Weight>
float DotRow(const DotValues& values, const Weight& weight) {
  constexpr size_t kParts = 16;
  float parts[kParts] = {};
  size_t k = 0;
  for (; k + kParts <= values.count; k += kParts) {
    for (size_t part = 0; part < kParts; ++part) parts[part] += values.exact[k + part] * weight(k + part);
  }
  for (; k < values.count; ++k) parts[0] += values.exact[k] * weight(k);
  float sum = 0;
  for (const float part : parts) sum += part;
  return sum;
}

void DotFloats(const DotValues& values, const DotGroup& group, float* products) {
  for (size_t i = 0; i < group.count; ++i) {
    const float* row = static_cast<const float*>(group.rows[i]);
    products[i] = DotRow(values, [row](size_t k) { return row[k]; });
  }
}

void DotHalves(const DotValues& values, const DotGroup& group, float* products) {
  for (size_t i = 0; i < group.count; ++i) {
    const uint16_t* row = static_cast<const uint16_t*>(group.rows[i]);
    products[i] = DotRow(values, [row](size_t k) { return HalfToFloat(row[k]); });
  }
}

template <typename Row>
float DotBlocks(Row row, const DotValues& values, const DotGroup& group, size_t i) {
  const size_t first = group.begins_with_half[i] ? 1 : 0;
  return DotRow(values,
                [&](size_t k) { return HalfToFloat(group.scales[i][k / group.block]) * Integer(row, first + k); });
}

void DotInt8(const DotValues& values, const DotGroup& group, float* products) {
  for (size_t i = 0; i < group.count; ++i) {
    products[i] = DotBlocks(static_cast<const int8_t*>(group.rows[i]), values, group, i);
  }
}

void DotInt4(const DotValues& values, const DotGroup& group, float* products) {
  for (size_t i = 0; i < group.count; ++i) {
    products[i] = DotBlocks(Int4Row{static_cast<const uint8_t*>(group.rows[i])}, values, group, i);
  }
}

// W[channel, column] of any type and any shape.
float Weight(const Weights& weights, size_t channel, size_t column) {
  const size_t position = channel * weights.columns + column;
  switch (weights.type) {
    case kFloat32:
      return static_cast<const float*>(weights.data)[position];
    case kFloat16:
      return HalfToFloat(static_cast<const uint16_t*>(weights.data)[position]);
    case kInt8:
      return Integer(static_cast<const int8_t*>(weights.data), position) *
             HalfToFloat(*ScalesAt(weights, channel, column));
    default:
      return Integer(Int4Row{static_cast<const uint8_t*>(weights.data)}, position) *
             HalfToFloat(*ScalesAt(weights, channel, column));
  }
}

void Multiply(const PanelProduct& product) {
  for (size_t fetches = product.count / kFetchChannels; fetches > 0; --fetches) FetchLines(product.ahead);
  for (size_t row = 0; row < product.rows; ++row) {
    float sums[kPanelColumns] = {};
    for (size_t k = 0; k < product.count; ++k) {
      const float value = product.values[row * product.values_stride + k];
      for (size_t c = 0; c < kPanelColumns; ++c) sums[c] += value * product.panels[k * kPanelColumns + c];
    }
    for (size_t c = 0; c < product.columns; ++c) product.out[row * product.out_stride + c] += sums[c];
  }
}

}  // namespace

void AddRowsPortable(WeightType type, const RowGroup& group, Stripe stripe, float* out) {
  kPortableKernels.add_rows[type](group, stripe, out);
}

void DotPortable(WeightType type, const DotValues& values, const DotGroup& group, float* products) {
  kPortableKernels.dot[type](values, group, products);
}

void UnpackPanelsPortable(const Weights& weights, const int64_t* indices, size_t count, Channels channels,
                          Stripe stripe, float* panels) {
  for (size_t begin = stripe.begin; begin < stripe.end; begin += kPanelColumns, panels += count * kPanelColumns) {
    for (size_t k = channels.begin; k < channels.end; ++k) {
      for (size_t c = 0; c < kPanelColumns; ++c) {
        const bool is_inside = begin + c < stripe.end;
        panels[k * kPanelColumns + c] = is_inside ? Weight(weights, static_cast<size_t>(indices[k]), begin + c) : 0.0f;
      }
    }
  }
}

void UnpackIntegersPortable(const Weights& weights, const int64_t* indices, size_t count, Stripe stripe,
                            int16_t* panels) {
  const auto integer = [&](size_t k, size_t c) -> int16_t {
    if (k >= count || c >= stripe.end) return 0;
    const size_t position = static_cast<size_t>(indices[k]) * weights.columns + c;
    if (weights.type == kInt8) return static_cast<const int8_t*>(weights.data)[position];
    return static_cast<int16_t>(kInt4Factor * Integer(Int4Row{static_cast<const uint8_t*>(weights.data)}, position));
  };
  for (size_t begin = stripe.begin; begin < stripe.end; begin += kPanelColumns) {
    for (size_t k = 0; k < count; k += 2) {
      for (size_t c = begin; c < begin + kPanelColumns; ++c) {
        *panels++ = integer(k, c);
        *panels++ = integer(k + 1, c);
      }
    }
  }
}

const Kernels kPortableKernels = {
    1024,
    {AddEach<AddFloats>, AddEach<AddHalves>, AddEach<AddInt8>, AddEach<AddInt4>},
    {UnpackPanelsPortable, UnpackPanelsPortable, UnpackPanelsPortable, UnpackPanelsPortable},
    true,  // so that the tests reach it on any processor
    kPanelColumns,
    Multiply,
    {},
    nullptr,
    {DotFloats, DotHalves, DotInt8, DotInt4},
    false,
    swiglu::Apply,
};

}  // namespace sparsecc
