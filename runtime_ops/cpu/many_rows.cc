#include "many_rows.h"

#include <algorithm>
#include <vector>

#include "float_panels.h"
#include "integer_panels.h"
#include "output.h"
#include "panels.h"
#include "tasks.h"

namespace sparsecc {
namespace {

// What a task packs of the values should serve many columns.
constexpr size_t kMinColumnsPerTask = 128;

// Integers are kept in whole tiles of channels: of fewer they would take many times the memory of floats.
constexpr size_t kFewestForIntegers = kTileChannels / 4;

// More tasks than threads, so that one that is held up has less to catch up with.
constexpr size_t kTasksPerThread = 4;

// out[rows, stripe] = sums[rows, kUnpackedColumns] + bias[stripe]
void Write(const Product& product, Range rows, Stripe stripe, const float* sums) {
  for (size_t row = rows.begin; row < rows.end; ++row, sums += kUnpackedColumns) {
    float* out = product.out + row * product.weights.columns;
    for (size_t c = stripe.begin; c < stripe.end; ++c) {
      out[c] = sums[c - stripe.begin] + (product.bias == nullptr ? 0.0f : product.bias[c]);
    }
  }
}

// The outputs of Values::kTileRows rows in a stripe of columns stay in the second-level cache, apart from the others,
// which lie a multiple of 4 KiB away where the columns are a power of two and would compete for the same lines.
template <typename Values>
void MultiplyTiles(const Call& call, const Kernels& kernels, const Product& product) {
  const size_t columns = product.weights.columns;
  const size_t parts = std::clamp<size_t>(columns / kMinColumnsPerTask, 1, kTasksPerThread * MaxTasks());
  const Values values(call, product);
  const size_t tile_rows = std::min(product.rows, Values::kTileRows);
  std::vector<float> sums_of_tasks(parts * tile_rows * kUnpackedColumns);
  call.Parallel(parts, [&](size_t task) {
    float* sums = sums_of_tasks.data() + task * tile_rows * kUnpackedColumns;
    const PanelsOf all(product.active, Part(columns, kUnpackedColumns, parts, task));
    for (size_t row = 0; row < product.rows; row += tile_rows) {
      const Range rows = {row, std::min(row + tile_rows, product.rows)};
      for (size_t i = 0; i < all.count(); ++i) {
        const Panels panels = all[i];
        if (panels.active.begin == 0) std::fill_n(sums, tile_rows * kUnpackedColumns, 0.0f);
        values.MultiplyPanels(kernels, product, rows, panels, all[(i + 1) % all.count()], sums);
        if (panels.active.end == product.active) Write(product, rows, panels.stripe, sums);
      }
    }
  });
}

}  // namespace

void MultiplyManyRows(const Call& call, const Kernels& kernels, const Product& product) {
  if (product.active == 0) return InitializeOutput(product, {0, product.weights.columns}, product.out);
  if (product.active >= kFewestForIntegers && HasIntegerPanels(kernels, product.weights)) {
    MultiplyTiles<IntegerValues>(call, kernels, product);
  } else {
    MultiplyTiles<FloatValues>(call, kernels, product);
  }
}

}  // namespace sparsecc
