#include "sparse_kernels.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace sparsecc {
namespace {

// Outputs of one stripe, over all rows of a batch: half of a 32 KiB first-level cache.
constexpr size_t kStripeFloats = 4096;

// With several rows of values the weights must stay in registers while each row uses them, so fewer are taken at once.
constexpr size_t kBatchGroup = 4;

struct Stripe {
  size_t first_row, batch;
  size_t begin, columns;
};

const float* WeightRow(const SparseProduct& product, size_t active, size_t column) {
  return product.weights + static_cast<size_t>(product.indices[active]) * product.columns + column;
}

void AddGroups(const SparseProduct& product, AddRows add_rows, const Stripe& stripe, const OutputStripe& output) {
  const size_t group_size = stripe.batch == 1 ? kMaxGroup : kBatchGroup;
  RowGroup group;
  group.values_stride = product.active;
  for (size_t a = 0; a < product.active; a += group_size) {
    group.count = std::min(group_size, product.active - a);
    group.values = product.values + stripe.first_row * product.active + a;
    for (size_t i = 0; i < group_size; ++i) {
      group.rows[i] = WeightRow(product, std::min(a + i, product.active - 1), stripe.begin);
      group.next[i] = WeightRow(product, std::min(a + group_size + i, product.active - 1), stripe.begin);
    }
    add_rows(group, output);
  }
}

// The outputs of several rows often lie a multiple of 4 KiB apart, where they would compete for the same few lines of
// the cache. They are collected side by side instead.
void AddBatch(const SparseProduct& product, AddRows add_rows, const Stripe& stripe) {
  alignas(64) float tile[kStripeFloats];
  float* const out = product.out + stripe.first_row * product.columns + stripe.begin;
  for (size_t b = 0; b < stripe.batch; ++b) {
    std::copy_n(out + b * product.columns, stripe.columns, tile + b * stripe.columns);
  }
  AddGroups(product, add_rows, stripe, {tile, stripe.columns, stripe.batch, stripe.columns});
  for (size_t b = 0; b < stripe.batch; ++b) {
    std::copy_n(tile + b * stripe.columns, stripe.columns, out + b * product.columns);
  }
}

void AddStripe(const SparseProduct& product, AddRows add_rows, const Stripe& stripe) {
  if (stripe.batch > 1) return AddBatch(product, add_rows, stripe);
  float* const out = product.out + stripe.first_row * product.columns + stripe.begin;
  AddGroups(product, add_rows, stripe, {out, product.columns, 1, stripe.columns});
}

}  // namespace

void AddColumns(const SparseProduct& product, AddRows add_rows, size_t begin, size_t end) {
  const size_t batch = std::min(product.rows, kMaxBatch);
  const size_t width = kStripeFloats / batch;
  for (size_t column = begin; column < end; column += width) {
    // The stripe's weights are in the cache for the second batch and later ones.
    for (size_t row = 0; row < product.rows; row += batch) {
      AddStripe(product, add_rows, {row, std::min(batch, product.rows - row), column, std::min(width, end - column)});
    }
  }
}

AddRows FastestKernel() {
#ifdef SPARSECC_HAS_AVX2
  const char* wanted = std::getenv("SPARSECC_KERNELS");
  const bool is_portable = wanted != nullptr && std::strcmp(wanted, "portable") == 0;
  if (!is_portable && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return AddRowsAvx2;
#endif
  return AddRowsPortable;
}

}  // namespace sparsecc
