// What the kernels of int8 and int4 rows with NEON share: whole blocks are added in integers, the rest by the portable
// kernels.
//
// The group is added 4 rows at a time over the whole stripe and not all 32 rows line by line: rows often lie a multiple
// of 4 KiB apart, and more lines than a cache set has ways would push each other out between prefetch and use.
#pragma once

#include "neon_multipliers.h"
#include "portable.h"

namespace sparsecc {
namespace {

constexpr size_t kRowsAtOnce = 4;
constexpr size_t kVectorColumns = 32;  // a divisor of every block

// Four rows where a stripe begins, and those to be prefetched.
template <typename Byte>
struct FourRows {
  FourRows(const void* const* group_rows, size_t first_byte) {
    for (size_t i = 0; i < kRowsAtOnce; ++i) {
      rows[i] = static_cast<const Byte*>(group_rows[i]) + first_byte;
      next[i] = static_cast<const Byte*>(group_rows[i + kRowsAhead]) + first_byte;
    }
  }
  // Inlined always: GCC drops calls of a function that does nothing but prefetch.
  __attribute__((always_inline)) void Prefetch(size_t byte) const {
    if (byte % 64 != 0) return;
    for (size_t i = 0; i < kRowsAtOnce; ++i) __builtin_prefetch(next[i] + byte);
  }
  const Byte *rows[kRowsAtOnce], *next[kRowsAtOnce];
};

// Adds the first blocks of a stripe in integers and the rest by the portable kernel, which also takes everything where
// integers will not do.
template <WeightType kType, typename Integers, auto kAddGroup>
void AddQuantized(const RowGroup& group, Stripe stripe, float* out) {
  const size_t first_block = stripe.begin / group.block, columns = stripe.end - stripe.begin;
  const size_t whole = group.block % kVectorColumns == 0 ? columns / group.block * group.block : 0;
  Multipliers<Integers> multipliers;
  if (whole == 0 || !Fill(group, first_block, whole / group.block, &multipliers)) {
    return AddRowsPortable(kType, group, stripe, out);
  }
  PrefetchScales(group, first_block);
  kAddGroup(group, multipliers, {stripe.begin, stripe.begin + whole}, out);
  if (whole < columns) AddRowsPortable(kType, group, {stripe.begin + whole, stripe.end}, out);
}

}  // namespace
}  // namespace sparsecc
