// The inner loops of the sparse products, in one set for each kind of processor.
//
// For one row of values, AddRows adds a group of weight rows, each scaled by its value, to a stripe of the output:
//
//   out[c] += sum over i of values[i] * W[rows[i], c]
//
// One weight row after another is how the weights lie in memory, and it makes every load a contiguous one; what it
// costs is that the output is read and written once for each row. So several rows are added at once, on a stripe of
// columns whose outputs stay in the first-level cache.
//
// A group's rows are far apart, each only a few KiB long: too short for the processor's own prefetcher, which stops at
// every 4 KiB page and has to learn each row anew. The kernels prefetch the rows that are read next instead.
//
// For many rows of values, weights are unpacked to panels of kPanelColumns columns, and MultiplyPanel adds
//
//   out[r, c] += sum over k of values[k, r] * panel[k, c]
#pragma once

#include <cstddef>
#include <cstdint>

#include "../weights.h"
#include "dot.h"

namespace sparsecc {

constexpr size_t kMaxGroup = 32;                        // rows that share one scratch sum, where the kernel has one
constexpr size_t kRowsAhead = 8;                        // rows of the next group that are prefetched
constexpr size_t kMaxStripe = 8192;                     // columns of quantized weights added at once
constexpr size_t kPanelColumns = 16;                    // columns of a panel
constexpr size_t kUnpackedColumns = 4 * kPanelColumns;  // so many that each row is read a cache line at a time or more
constexpr size_t kPanelRows = 6;                        // rows of values multiplied by a panel at once

struct RowGroup {
  size_t count;  // 1 to kMaxGroup
  // The rows, then those read next; past the last one they repeat it.
  const void* rows[kMaxGroup + kRowsAhead];
  // Quantized rows only: the scales, of this group and of the next one.
  const uint16_t* scales[2 * kMaxGroup];
  float values[kMaxGroup];  // 0 past the last one
  size_t block;
};

// A range of columns. Of quantized weights it is at most kMaxStripe wide and begins where a byte and a block begin.
struct Stripe {
  size_t begin, end;
};

// out[c] += the group's rows times their values, for each column c of the stripe.
using AddRows = void (*)(const RowGroup& group, Stripe stripe, float* out);

// Writes W[indices[0, count), stripe] as float to panels[panel, count, kPanelColumns], 0 past the stripe's end. The
// stripe is at most kUnpackedColumns wide.
using UnpackPanels = void (*)(const Weights& weights, const int64_t* indices, size_t count, Stripe stripe,
                              float* panels);

// out[rows, columns] += the transpose of values[count, rows], times panel[count, kPanelColumns]. rows is 1 to
// kPanelRows, columns 1 to kPanelColumns.
struct PanelProduct {
  const float* values;
  size_t rows;
  const float* panel;
  size_t count;
  float* out;
  size_t out_stride, columns;
};
using MultiplyPanel = void (*)(const PanelProduct& product);

struct Kernels {
  size_t stripe_bytes;  // of quantized rows, added at once: a multiple of 1 KiB, kMaxStripe columns at most
  AddRows add_rows[kWeightTypes];
  UnpackPanels unpack_panels[kWeightTypes];
  MultiplyPanel multiply_panel;
  Dot dot[kWeightTypes];
  bool dot_rounds;  // whether the products of quantized rows are those of rounded values where there are any
};

extern const Kernels kPortableKernels;
#ifdef SPARSECC_HAS_AVX2
extern const Kernels kAvx2Kernels;  // needs AVX2, FMA and F16C
#endif
#ifdef SPARSECC_HAS_AVX512
extern const Kernels kAvx512Kernels;  // needs these and AVX-512 F, BW, VL and VNNI
#endif
#ifdef SPARSECC_HAS_NEON
extern const Kernels kNeonKernels;         // runs on every aarch64
extern const Kernels kNeonDotprodKernels;  // needs SDOT
#endif

// The set of this name, or null where the library or the processor lacks it.
const Kernels* FindKernels(const char* name);

// The fastest kernels for this processor, or those that SPARSECC_KERNELS in the environment names, for finding out
// whether a difference comes from the kernels.
const Kernels& FastestKernels();

}  // namespace sparsecc
