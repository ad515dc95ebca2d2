#include "many_rows.h"

#include <algorithm>
#include <vector>

#include "float_panels.h"
#include "integer_panels.h"
#include "panels.h"
#include "tasks.h"

namespace sparsecc {
namespace {

// What a task packs of the values should serve many columns.
constexpr size_t kMinColumnsPerTask = 128;

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

// Values::kTileRows rows of values in kTileChannels channels stay in the second-level cache while the weights of those
// channels pass through the first-level cache.
template <typename Values>
void MultiplyTiles(const Call& call, const Kernels& kernels, const Product& product) {
  const size_t columns = product.weights.columns;
  const size_t parts = std::clamp<size_t>(columns / kMinColumnsPerTask, 1, kTasksPerThread * MaxTasks());
  const Values values(call, product);
  call.Parallel(parts, [&](size_t task) {
    const std::vector<Panels> all = PanelsOf(product.active, Part(columns, kUnpackedColumns, parts, task));
    std::vector<float> sums(std::min(product.rows, Values::kTileRows) * kUnpackedColumns);
    for (size_t row = 0; row < product.rows; row += Values::kTileRows) {
      const Range rows = {row, std::min(row + Values::kTileRows, product.rows)};
      for (size_t i = 0; i < all.size(); ++i) {
        if (all[i].active.begin == 0) std::fill(sums.begin(), sums.end(), 0.0f);
        values.MultiplyPanels(kernels, product, rows, all[i], all[(i + 1) % all.size()], sums.data());
        if (all[i].active.end == product.active) Write(product, rows, all[i].stripe, sums.data());
      }
    }
  });
}

}  // namespace

void MultiplyManyRows(const Call& call, const Kernels& kernels, const Product& product) {
  if (product.active == 0) return InitializeOutput(product, {0, product.weights.columns}, product.out);
  if (HasIntegerPanels(kernels, product.weights)) {
    MultiplyTiles<IntegerValues>(call, kernels, product);
  } else {
    MultiplyTiles<FloatValues>(call, kernels, product);
  }
}

}  // namespace sparsecc
