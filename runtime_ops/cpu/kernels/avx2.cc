// The kernels for x86-64 with AVX2, FMA and F16C, compiled with all three switched on. Nothing that this file defines
// or instantiates may have external linkage but the table and DotAvx2: the linker could pick a copy that uses AVX2 for
// the rest of the library, which has to run without. So it includes no C++ library header but those of types.
#include "avx2_dot.h"
#include "avx2_float.h"
#include "avx2_int4.h"
#include "avx2_int8.h"
#include "avx2_integers.h"
#include "avx2_panel.h"
#include "swiglu.h"

namespace sparsecc {
namespace {

// Adds the first `whole` columns of a stripe in integers, and by the portable kernel the rest, or everything where
// integers will not do.
template <WeightType kType, typename Pack, auto kAddGroup>
void AddQuantized(const RowGroup& group, Stripe stripe, size_t whole, float* out) {
  const size_t first_block = stripe.begin / group.block;
  constexpr size_t kBits = BitsPerWeight(kType);
  const RowsAhead<Pack::kRowsAhead> ahead(group.rows + kRowsAhead, stripe.begin * kBits / 8);
  Multipliers multipliers;
  if (whole == 0 || !Fill<Pack>(group, first_block, whole / group.block, ahead, &multipliers)) {
    return AddRowsPortable(kType, group, stripe, out);
  }
  kAddGroup(group, multipliers, {stripe.begin, stripe.begin + whole}, out);
  if (stripe.begin + whole < stripe.end) AddRowsPortable(kType, group, {stripe.begin + whole, stripe.end}, out);
}

void AddInt8(const RowGroup& group, Stripe stripe, float* out) {
  const size_t columns = stripe.end - stripe.begin;
  const size_t whole = group.block % int8::kVectorColumns == 0 ? columns / group.block * group.block : 0;
  const auto add = group.block == 32   ? AddQuantized<kInt8, Pack16, int8::AddGroup<32>>
                   : group.block == 64 ? AddQuantized<kInt8, Pack16, int8::AddGroup<64>>
                                       : AddQuantized<kInt8, Pack16, int8::AddGroup<0>>;
  add(group, stripe, whole, out);
}

void AddInt4(const RowGroup& group, Stripe stripe, float* out) {
  const size_t columns = stripe.end - stripe.begin;
  if (group.block == int4::kVectorColumns / 2) {
    const size_t whole = columns / int4::kVectorColumns * int4::kVectorColumns;
    return AddQuantized<kInt4, Pack8EvenOdd, int4::AddGroup<32>>(group, stripe, whole, out);
  }
  const size_t whole = group.block % int4::kVectorColumns == 0 ? columns / group.block * group.block : 0;
  const auto add = group.block == 64 ? AddQuantized<kInt4, Pack8InOrder, int4::AddGroup<64>>
                                     : AddQuantized<kInt4, Pack8InOrder, int4::AddGroup<0>>;
  add(group, stripe, whole, out);
}

}  // namespace

void DotAvx2(WeightType type, const DotValues& values, const DotGroup& group, float* products) {
  kAvx2Kernels.dot[type](values, group, products);
}

const Kernels kAvx2Kernels = {
    4096,
    {floating::AddGroup<float>, floating::AddGroup<uint16_t>, AddInt8, AddInt4},
    {panel::Unpack<float>, panel::Unpack<uint16_t>, panel::Unpack<int8_t>, panel::Unpack<panel::Int4>},
    false,
    kPanelColumns,
    panel::Multiply,
    {nullptr, nullptr, integers::Unpack<integers::Int8, integers::StorePairs>,
     integers::Unpack<integers::Int4, integers::StorePairs>},
    integers::Multiply,
    {dot::Floats<float>, dot::Floats<uint16_t>, dot::Int8, dot::Int4},
    true,
    swiglu::Apply,
};

}  // namespace sparsecc
