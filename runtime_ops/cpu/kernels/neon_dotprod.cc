// The kernels for aarch64 with the dot product, compiled with it switched on. As in avx2.cc, nothing that this file
// defines or instantiates may have external linkage but the table.
#include "neon_dotprod_int4.h"
#include "neon_float.h"
#include "neon_int8.h"
#include "neon_panel.h"
#include "swiglu.h"

namespace sparsecc {

namespace {

// The compiler makes of the portable loops what a kernel of NEON's would do with floats.
template <WeightType kType>
void DotWith(const DotValues& values, const DotGroup& group, float* products) {
  DotPortable(kType, values, group, products);
}

}  // namespace

const Kernels kNeonDotprodKernels = {
    1024,
    {floating::AddGroup<float>, floating::AddGroup<uint16_t>, AddQuantized<kInt8, Words, int8::AddGroup>,
     AddQuantized<kInt4, Quads, dotprod_int4::AddGroup>},
    {panel::Unpack<float>, panel::Unpack<uint16_t>, panel::Unpack<int8_t>, panel::Unpack<panel::Int4>},
    false,
    kPanelColumns,
    panel::Multiply,
    {},
    nullptr,
    {DotWith<kFloat32>, DotWith<kFloat16>, DotWith<kInt8>, DotWith<kInt4>},
    false,
    swiglu::Apply,
};

}  // namespace sparsecc
