// Ranges of channels, of columns and of rows, and how they are divided among tasks.
#pragma once

#include <algorithm>
#include <cstddef>

namespace sparsecc {

struct Range {
  size_t begin, end;
};

// Part `index` of `parts` of [0, count), a multiple of `step` but for the last.
inline Range Part(size_t count, size_t step, size_t parts, size_t index) {
  const size_t steps = (count + step - 1) / step;
  return {std::min(count, steps * index / parts * step), std::min(count, steps * (index + 1) / parts * step)};
}

}  // namespace sparsecc
