// The kernels for x86-64 with AVX-512 F, BW, VL and VNNI, compiled with all four switched on. As in avx2.cc, nothing
// that this file defines or instantiates may have external linkage but the table, so it includes no C++ library header
// but those of types.
#include "avx512_float.h"
#include "avx512_int4.h"
#include "avx512_int8.h"
#include "avx512_integers.h"
#include "avx512_panel.h"
#include "swiglu.h"

namespace sparsecc {
namespace {

// Whether no 32 columns that begin with a multiple of 32 span two blocks, and a column's block is a shift away.
bool IsUsual(size_t block) { return block >= 32 && (block & (block - 1)) == 0; }

// Adds in integers, or by the portable kernel where they will not do.
template <WeightType kType, typename Pack, auto kAddGroup>
void AddQuantized(const RowGroup& group, Stripe stripe, float* out) {
  const size_t first_block = stripe.begin / group.block;
  const size_t blocks = (stripe.end - stripe.begin + group.block - 1) / group.block;
  const RowsAhead<Pack::kRowsAhead> ahead(group.rows + kRowsAhead, stripe.begin / Pack::kColumnsPerByte);
  Multipliers multipliers;
  if (!IsUsual(group.block) || !Fill<Pack>(group, first_block, blocks, ahead, &multipliers)) {
    return AddRowsPortable(kType, group, stripe, out);
  }
  kAddGroup(group, multipliers, stripe, out);
}

// AVX2 keeps up with memory.
template <WeightType kType>
void DotWith(const DotValues& values, const DotGroup& group, float* products) {
  DotAvx2(kType, values, group, products);
}

}  // namespace

const Kernels kAvx512Kernels = {
    4096,
    {floating::AddGroup<float>, floating::AddGroup<uint16_t>, AddQuantized<kInt8, Pack16, int8::AddGroup>,
     AddQuantized<kInt4, Pack8, int4::AddGroup>},
    {panel::Unpack<float>, panel::Unpack<uint16_t>, panel::Unpack<int8_t>, panel::Unpack<panel::Int4>},
    true,
    panel::kPanels * kPanelColumns,
    panel::Multiply,
    {nullptr, nullptr, integers::Unpack<integers::Int8, integers::StorePairs>,
     integers::Unpack<integers::Int4, integers::StorePairs>},
    integers::Multiply,
    {DotWith<kFloat32>, DotWith<kFloat16>, DotWith<kInt8>, DotWith<kInt4>},
    true,
    swiglu::Apply,
};

}  // namespace sparsecc
