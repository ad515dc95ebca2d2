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
// For many rows of values, weights are unpacked to panels of kPanelColumns columns, and MultiplyPanels adds
//
//   out[r, c] += sum over k of values[r, k] * panels[k, c]
//
// and fetches the weights of the panels that follow.
//
// Quantized weights are unpacked to integers instead where a set has kernels for these: integer_panels.h says how the
// values become integers as well.
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
constexpr size_t kUnpackedColumns = 8 * kPanelColumns;  // at most, of all panels that are unpacked together
constexpr size_t kPanelRows = 6;                        // rows of values multiplied by a panel at once
constexpr size_t kTileChannels = 256;                   // of a panel at most
constexpr size_t kTilePairs = kTileChannels / 2;        // of channels, which an instruction adds at once
constexpr size_t kFetchChannels = 32;                   // multiplied between two fetches of the next panels' weights
constexpr int kInt4Factor = 16;                         // by which int4 are larger as integers of 16 bits

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

// A range of some active channels.
struct Channels {
  size_t begin, end;
};

// out[c] += the group's rows times their values, for each column c of the stripe.
using AddRows = void (*)(const RowGroup& group, Stripe stripe, float* out);

// Writes some channels of W[indices[0, count), stripe] as float to panels[panel, count, kPanelColumns], 0 past the
// stripe's end. The stripe is at most kUnpackedColumns wide.
using UnpackPanels = void (*)(const Weights& weights, const int64_t* indices, size_t count, Channels channels,
                              Stripe stripe, float* panels);

// The weights that the next panels are unpacked from: `bytes` of each row from a column on. panels_ahead.h fetches
// them.
struct PanelsAhead {
  const Weights* weights = nullptr;
  const int64_t *next = nullptr, *end = nullptr;  // the rows still to be fetched
  size_t column = 0, bytes = 0;
  size_t lines_per_fetch = 0;
  const char *line = nullptr, *line_end = nullptr;  // what is left of the row before them
};

// out[rows, columns] += values[rows, count] @ panels[count, columns]. Every kFetchChannels channels, some lines of the
// next panels' weights are fetched.
struct PanelProduct {
  const float* values;
  size_t values_stride, rows;  // 1 to kPanelRows
  const float* panels;         // as many as hold the columns, one after the other
  size_t count;
  float* out;
  size_t out_stride, columns;  // 1 to the set's columns_at_once
  PanelsAhead& ahead;
};
using MultiplyPanels = void (*)(const PanelProduct& product);

// Writes the integers of quantized weights W[indices[0, count), stripe] to panels[panel, pair, kPanelColumns, 2], those
// of int4 times kInt4Factor, 0 past the stripe's end and beside an odd last channel. The stripe is at most
// kUnpackedColumns wide; it and every row begin with a byte, and the panels with a cache line.
using UnpackIntegers = void (*)(const Weights& weights, const int64_t* indices, size_t count, Stripe stripe,
                                int16_t* panels);

// out[r, c] += row_units[r] * block_unit * sum over k of round(values[k, r] * scales[k] / 2^15) * panels[k, c]
// Values, scales and panels begin with a cache line; values and scales may be read to their end, however few pairs.
struct IntegerProduct {
  const int16_t* values;  // [kTilePairs, kPanelRows, 2], of magnitudes below 2^15
  const int16_t* scales;  // [kTilePairs, 2], of magnitudes below 2^15
  const float* row_units;
  float block_unit;
  size_t rows;            // 1 to kPanelRows
  const int16_t* panels;  // as many as hold the columns, one after the other
  size_t pairs;           // at most kTilePairs
  float* out;
  size_t out_stride, columns;  // 1 to kUnpackedColumns
};
using MultiplyIntegers = void (*)(const IntegerProduct& product);

// out[c] = silu(gate[c]) * up[c] for each c below count.
using ApplySwiGLU = void (*)(const float* gate, const float* up, size_t count, float* out);

struct Kernels {
  size_t stripe_bytes;  // of quantized rows, added at once: a multiple of 1 KiB, kMaxStripe columns at most
  AddRows add_rows[kWeightTypes];
  UnpackPanels unpack_panels[kWeightTypes];
  bool unpacks_ahead;  // the next panels while some are multiplied; measured to be worth it with 2 MiB of second-level
                       // cache
  size_t columns_at_once;  // by multiply_panels, at most: a multiple of kPanelColumns
  MultiplyPanels multiply_panels;
  UnpackIntegers unpack_integers[kWeightTypes];  // null of floats, and where the set has no integer panels
  MultiplyIntegers multiply_integers;            // null as well then
  Dot dot[kWeightTypes];
  bool dot_rounds;  // whether the products of quantized rows are those of rounded values where there are any
  ApplySwiGLU apply_swiglu;
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
