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

// Sums of so many columns and 64 rows, as of a short prompt, leave half of a second-level cache of 512 KiB to the
// values and weights.
constexpr size_t kMaxColumnsPerTask = 1024;

// Of fewer columns a task would have less arithmetic than reading of values, even if some threads have no work.
constexpr size_t kMinColumnsPerTask = 128;

// Integers are kept in whole tiles of channels: of fewer they would take many times the memory of floats.
constexpr size_t kFewestForIntegers = kTileChannels / 4;

// As many for each thread.
size_t Tasks(size_t columns) {
  const size_t fewest = std::clamp<size_t>(columns / kMinColumnsPerTask, 1, MaxTasks());
  const size_t tasks = std::max(fewest, PartsOf(columns, kMaxColumnsPerTask));
  return tasks <= MaxTasks() ? tasks : PartsOf(tasks, MaxTasks()) * MaxTasks();
}

// out[rows, columns] = sums + bias
void Write(const Product& product, Range rows, Range columns, const Sums& sums) {
  for (size_t row = rows.begin; row < rows.end; ++row) {
    const float* from = sums.At(row, columns.begin);
    float* to = product.out + row * product.weights.columns;
    for (size_t c = columns.begin; c < columns.end; ++c) {
      to[c] = *from++ + (product.bias == nullptr ? 0.0f : product.bias[c]);
    }
  }
}

template <typename Tiles>
void MultiplyTiles(const Call& call, const Kernels& kernels, const Product& product) {
  const Tiles tiles(call, kernels, product);
  const TileShape shape = Tiles::Tile(kernels, product.weights);
  const size_t tasks = Tasks(product.weights.columns);
  const auto columns_of = [&](size_t task) { return Part(product.weights.columns, shape.columns, tasks, task); };
  std::vector<Sums> sums_of_tasks;  // made here, since a task must not throw
  for (size_t task = 0; task < tasks; ++task) {
    sums_of_tasks.emplace_back(std::min(product.rows, shape.rows), columns_of(task));
  }
  call.Parallel(tasks, [&](size_t task) {
    const Range columns = columns_of(task);
    const PanelsOf all(product.active, columns, shape);
    Sums& sums = sums_of_tasks[task];
    typename Tiles::Unpacked unpacked;
    for (size_t row = 0; row < product.rows; row += shape.rows) {
      const Range rows = {row, std::min(row + shape.rows, product.rows)};
      sums.Clear(rows);
      for (size_t i = 0; i < all.count(); ++i) {
        const bool is_last = i + 1 == all.count() && rows.end == product.rows;
        tiles.Multiply(rows, all[i], is_last ? Panels{} : all[(i + 1) % all.count()], sums, unpacked);
      }
      Write(product, rows, columns, sums);
    }
  });
}

}  // namespace

void MultiplyManyRows(const Call& call, const Kernels& kernels, const Product& product) {
  if (product.active == 0) return InitializeOutput(product, {0, product.weights.columns}, product.out);
  if (product.active >= kFewestForIntegers && HasIntegerPanels(kernels, product.weights)) {
    MultiplyTiles<IntegerPanels>(call, kernels, product);
  } else {
    MultiplyTiles<FloatPanels>(call, kernels, product);
  }
}

}  // namespace sparsecc
