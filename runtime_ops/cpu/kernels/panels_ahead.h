// What is fetched while panels are multiplied.
//
// The weights of the next panels are brought to the second-level cache: else memory would be idle during the
// arithmetic, and the arithmetic during the unpacking. A few lines are asked for at a time, at an even pace. A core has
// few misses in flight, and behind many that start at once the product would wait for its own values.
#pragma once

#include <cstddef>

#include "kernels.h"

namespace sparsecc {
namespace {

inline void FetchLines(PanelsAhead& ahead) {
  for (size_t i = 0; i < ahead.lines_per_fetch; ++i) {
    if (ahead.line >= ahead.line_end) {
      if (ahead.next == ahead.end) return;
      ahead.line = static_cast<const char*>(RowAt(*ahead.weights, static_cast<size_t>(*ahead.next++), ahead.column));
      ahead.line_end = ahead.line + ahead.bytes;
    }
    __builtin_prefetch(ahead.line, 0, 2);
    ahead.line += 64;
  }
}

}  // namespace
}  // namespace sparsecc
