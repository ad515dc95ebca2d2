#include "swiglu.h"

#include "tasks.h"

namespace sparsecc {

void SwiGLU::Compute(const Call& call) const {
  const auto x = call.Input<float>(0, "X", Call::kAnyRank);
  if (x.shape.back() % 2 != 0) throw OpError("the last dimension of X must be even, but X is " + ToString(x.shape));
  Shape shape = x.shape;
  shape.back() /= 2;
  const auto y = call.Output<float>(0, shape);
  if (Elements(shape) == 0) return;  // however many rows that may be
  const size_t rows = Rows(shape), columns = Columns(shape);
  const Split split(rows, 2 * columns);
  call.Parallel(split.tasks(), [&](size_t task) {
    for (size_t row = split.begin(task); row < split.end(task); ++row) {
      const float* gate = x.data + row * 2 * columns;
      kernels_.apply_swiglu(gate, gate + columns, columns, y.data + row * columns);
    }
  });
}

}  // namespace sparsecc
